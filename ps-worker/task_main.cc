// ps-task: one worker task of a job, started by the agent of its node.
//
//   ps-task --spec FILE --control-fd 3 --ring PATH [--ring-bytes N]   trains
//   ps-task --preflight --spec FILE [--result FILE]                   checks model and data
//   ps-task --devices [--result FILE]                                 says which GPUs it can use
//
// FILE holds the resolved job as JSON. Preflight writes a control message with a PreflightResult to
// --result and one line of JSON to stdout, --devices likewise a DeviceReport. Exit status: 0 done
// or fine; 7 the preflight found something wrong; 64 usage; 65 the job, its model or its data is
// wrong; 75 ended by the agent, the coordinator or a failure that another try may not meet. Log
// lines go to stderr.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "common/net/allocator.h"
#include "common/net/log.h"
#include "ps-worker/engine/load.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/task_device.h"
#include "ps-worker/engine/trainer.h"
#include "ps-worker/task/task_session.h"

namespace {

constexpr int kExitOk = 0;
constexpr int kExitPreflight = 7;
constexpr int kExitUsage = 64;
constexpr int kExitInvalid = 65;
constexpr int kExitTemporary = 75;

struct Flags {
  bool preflight = false;
  bool devices = false;
  std::string spec_file;
  int spec_fd = -1;
  std::string result_file;
  int control_fd = 3;
  std::string ring;
  std::uint64_t ring_bytes = std::uint64_t{1} << 30;
  std::string log_level = "info";
  ps::net::SecurityOptions security;
};

ps::Result<std::string> ReadAll(int fd) {
  std::string text;
  std::array<char, 65536> buffer{};
  while (true) {
    const auto count = read(fd, buffer.data(), buffer.size());
    if (count == 0) return text;
    if (count < 0) {
      return ps::Error{ps::ErrorCode::kIo,
                       "cannot read the job from descriptor " + std::to_string(fd)};
    }
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (text.size() > ps::control::kMaxMessageBytes) {
      return ps::Error{ps::ErrorCode::kInvalid, "the job file is too large"};
    }
  }
}

ps::Result<ps::JobSpec> ReadSpec(const Flags& flags) {
  std::string text;
  if (flags.spec_fd >= 0) {
    text = PS_TRY(ReadAll(flags.spec_fd));
  } else {
    std::ifstream file(flags.spec_file, std::ios::binary);
    if (!file) {
      return ps::Error{ps::ErrorCode::kInvalid, flags.spec_file + ": cannot be opened"};
    }
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  return ps::ParseJobJson(text);
}

bool WriteFile(const std::string& path, const std::vector<std::byte>& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  return file.good();
}

int RunPreflight(const Flags& flags, const ps::Result<ps::JobSpec>& spec) {
  ps::control::PreflightResultT result;
  if (spec.ok()) {
    ps::worker::SetComputeThreads(spec.value().training.threads_per_worker);
    // Where the job's tasks will compute, or where that is not here on the CPU: model and data can
    // be looked at all the same.
    auto device = ps::worker::ChooseDevice(spec.value());
    ps::JobSpec tried = spec.value();
    if (!device.ok()) {
      spdlog::info("checked on the CPU: {}", device.error().message);
      tried.resources.gpus = 0;
      tried.training.precision = "auto";
    }
    result = ps::worker::Preflight(tried, device.ok() ? *device : ps::worker::TaskDevice());
  } else {
    result.error = spec.error().message;
    result.error_id = static_cast<std::uint16_t>(spec.error().id);
  }
  nlohmann::json line{{"ok", result.ok}, {"error", result.error}};
  if (result.ok) {
    line["parameters"] = result.layout->parameters;
    line["blocks"] = result.layout->blocks;
    line["layout_fingerprint"] = result.layout->fingerprint;
    line["records"] = result.data->records;
    line["test_records"] = result.data->test_records;
    line["data_fingerprint"] = result.data->fingerprint;
  }
  std::puts(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  const bool ok = result.ok;
  if (!flags.result_file.empty()) {
    const auto message = ps::control::Encode(ps::control::Make(std::move(result)));
    if (!WriteFile(flags.result_file, message)) {
      spdlog::error("{}: cannot be written", flags.result_file);
      return kExitTemporary;
    }
  }
  return ok ? kExitOk : kExitPreflight;
}

int RunDevices(const Flags& flags) {
  auto report = ps::worker::FindDevices();
  nlohmann::json gpus = nlohmann::json::array();
  for (const auto& gpu : report.gpus) {
    gpus.push_back({{"uuid", gpu->uuid},
                    {"name", gpu->name},
                    {"memory_bytes", gpu->memory_bytes},
                    {"capability", std::to_string(gpu->major) + "." + std::to_string(gpu->minor)}});
  }
  const nlohmann::json line{{"gpus", std::move(gpus)}, {"note", report.note}};
  std::puts(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  if (flags.result_file.empty()) return kExitOk;
  if (!WriteFile(flags.result_file, ps::control::Encode(ps::control::Make(std::move(report))))) {
    spdlog::error("{}: cannot be written", flags.result_file);
    return kExitTemporary;
  }
  return kExitOk;
}

std::string Where(const ps::worker::TaskDevice& device) {
  if (!device.models.front().compute.gpu) return "the CPU";
  return device.models.size() == 1 ? "a GPU" : std::to_string(device.models.size()) + " GPUs";
}

int ExitStatus(const ps::Error& error) {
  return error.code == ps::ErrorCode::kInvalid ? kExitInvalid : kExitTemporary;
}

int RunTask(const Flags& flags, const ps::Result<ps::JobSpec>& spec) {
  ps::worker::TaskOptions options;
  options.control_fd = flags.control_fd;
  options.ring_path = flags.ring;
  options.ring_bytes = flags.ring_bytes;
  options.security = flags.security;
  options.bulk_synchronous = spec.ok() && spec->training.staleness == 0;
  options.flush_residuals = spec.ok() && spec->checkpoint.flush_residuals;
  options.stop_on_nonfinite = spec.ok() && spec->training.on_nonfinite == "stop";
  auto session = ps::worker::TaskSession::Open(options);
  if (!session.ok()) {
    spdlog::error("{}", ps::ErrorLine(session.error()));
    return ExitStatus(session.error());
  }
  const auto fail = [&session](const ps::Error& error) {
    spdlog::error("{}", ps::ErrorLine(error));
    session.value()->Failed(error.code == ps::ErrorCode::kInvalid, ps::ErrorLine(error));
    return ExitStatus(error);
  };
  if (!spec.ok()) return fail(spec.error());
  ps::worker::SetComputeThreads(spec.value().training.threads_per_worker);
  const auto device = ps::worker::ChooseDevice(spec.value());
  if (!device.ok()) return fail(device.error());
  auto task = ps::worker::LoadTask(spec.value(), *device);
  if (!task.ok()) return fail(task.error());
  spdlog::info("{} on {}, {} parameters, {} records", ps::worker::EngineVersion(), Where(*device),
               task->workload->layout().parameters, task->train->records());
  ps::worker::Trainer trainer(spec.value(), *session.value(), *task->workload, *task->train,
                              task->test.get(), task->files.fingerprint);
  const auto ended = trainer.Run();
  if (!ended.ok()) {
    spdlog::error("{}", ps::ErrorLine(ended.error()));
    return ExitStatus(ended.error());
  }
  spdlog::info("ends: {}", ended.value());
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  ps::net::KeepFreedMemory();
  Flags flags;
  CLI::App app("One worker task of a job. Started by ps-worker.", "ps-task");
  app.set_version_flag("--version", PS_VERSION);
  app.add_flag("--preflight", flags.preflight, "Check model and data, train nothing");
  auto* spec_file = app.add_option("--spec", flags.spec_file, "The resolved job, JSON");
  app.add_option("--spec-fd", flags.spec_fd, "The same from an inherited descriptor")
      ->excludes(spec_file);
  app.add_flag("--devices", flags.devices, "Say which GPUs tasks can compute on")
      ->excludes("--preflight")
      ->excludes(spec_file);
  app.add_option("--result", flags.result_file, "Where the result of these goes");
  app.add_option("--control-fd", flags.control_fd, "Socket to the agent")->capture_default_str();
  app.add_option("--ring", flags.ring, "File of the retention ring");
  app.add_option("--ring-bytes", flags.ring_bytes, "Its size")->capture_default_str();
  app.add_option("--key", flags.security.key, "As that of ps-worker");
  app.add_option("--trusted", flags.security.trusted, "As that of ps-worker");
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (auto status = ps::SetUpLogging("ps-task", flags.log_level); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.error().message.c_str());
    return kExitUsage;
  }
  if (flags.devices) return RunDevices(flags);
  if (flags.spec_file.empty() && flags.spec_fd < 0) {
    spdlog::error("--spec FILE is missing");
    return kExitUsage;
  }
  if (!flags.preflight && flags.ring.empty()) {
    spdlog::error("--ring PATH is missing");
    return kExitUsage;
  }
  const auto spec = ReadSpec(flags);
  return flags.preflight ? RunPreflight(flags, spec) : RunTask(flags, spec);
}
