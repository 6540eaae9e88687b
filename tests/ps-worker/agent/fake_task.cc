// Stands for ps-task in the tests of the agent.
//
// Trains nothing: on TaskStart it makes a ring with three pushes, asks for a lease and reports; on
// Drain it answers Drained; on Evaluate it ends with the round as exit status (or by SIGKILL for
// round 999, with a TaskFailed before for round 3); on StopTask it ends with success, but ignores
// it once it got a RoundBegin. As a preflight it says yes, no, nothing, or never, by the job's
// name.
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "common/messages/control.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/ring_file.h"

namespace {

using ps::control::Make;
using ps::control::MessageT;

constexpr int kControl = 3;
bool stubborn = false;

bool ReadAll(void* to, std::size_t bytes) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::read(kControl, at, bytes);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

void Say(const MessageT& message) {
  const std::vector<std::byte> bytes = ps::control::Encode(message);
  const auto length = static_cast<std::uint32_t>(bytes.size());
  std::string frame(sizeof(length), '\0');
  std::memcpy(frame.data(), &length, sizeof(length));
  frame.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (::send(kControl, frame.data(), frame.size(), 0) != static_cast<ssize_t>(frame.size())) {
    std::_Exit(9);
  }
}

int MakeRing(const std::string& path, std::uint64_t bytes, const ps::control::TaskStartT& start) {
  auto file = ps::worker::RingFile::Create(path, bytes);
  if (!file.ok()) return 1;
  ps::worker::RingIdentity identity;
  identity.job = ps::JobId(start.start->job);
  identity.worker = ps::WorkerId(start.worker);
  identity.incarnation = ps::Incarnation(start.incarnation);
  identity.generation = start.start->generation;
  identity.shards = 2;
  identity.first_clock = ps::Clock(start.first_clock);
  auto ring = ps::worker::RetentionRing::Create((*file)->region(), identity, *file);
  if (!ring.ok()) return 1;
  for (std::uint64_t i = 1; i <= 3; ++i) {
    ps::worker::RetentionRing::Reservation space;
    if (ring->Reserve(16, 1, space) != ps::worker::RetentionRing::ReserveStatus::kReserved)
      return 1;
    if (!(*file)->Back(space.region_begin, space.region_end).ok()) return 1;
    ps::worker::RingPart part;
    part.shard = 1;
    part.bytes = 8;
    ring->Commit({ps::Clock(start.first_clock + i), 10, 0, 77, 10 * i}, 8, {&part, 1});
  }
  return 0;
}

int Preflight(const std::string& spec, const std::string& result) {
  if (spec.find("says-never") != std::string::npos) ::sleep(100);
  if (spec.find("says-nothing") != std::string::npos) {
    std::puts("the model file is not there");
    return 7;
  }
  ps::control::PreflightResultT answer;
  answer.ok = spec.find("says-no") == std::string::npos;
  answer.error = answer.ok ? "" : "the labels do not fit";
  answer.layout = std::make_unique<ps::control::LayoutT>();
  answer.data = std::make_unique<ps::control::DataInfoT>();
  answer.data->records = 42;
  const std::vector<std::byte> bytes = ps::control::Encode(Make(std::move(answer)));
  std::ofstream(result, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  return 0;
}

int End(std::uint64_t round) {
  if (round == 999) ::raise(SIGKILL);
  if (round == 3) {
    ps::control::TaskFailedT failed;
    failed.permanent = true;
    failed.message = "round 3";
    Say(Make(std::move(failed)));
  }
  return static_cast<int>(round);
}

}  // namespace

// DS_FAKE_GPUS of them; nothing is said if it is not a number.
int Devices(const std::string& path) {
  const std::string count =
      std::getenv("DS_FAKE_GPUS") == nullptr ? "" : std::getenv("DS_FAKE_GPUS");
  if (count.find_first_not_of("0123456789") != std::string::npos) {
    std::fprintf(stderr, "no devices today\n");
    return 3;
  }
  ps::control::DeviceReportT report;
  if (count.empty()) report.note = "there is no driver";
  for (int i = 0; i < std::atoi(count.c_str()); ++i) {
    auto gpu = std::make_unique<ps::control::GpuInfoT>();
    gpu->uuid = "GPU-" + std::to_string(i);
    report.gpus.push_back(std::move(gpu));
  }
  const auto bytes = ps::control::Encode(Make(std::move(report)));
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  return 0;
}

int main(int argc, char** argv) {
  std::map<std::string, std::string> flags;
  bool preflight = false;
  bool devices = false;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--preflight") {
      preflight = true;
    } else if (flag == "--devices") {
      devices = true;
    } else if (i + 1 < argc) {
      flags[flag] = argv[++i];
    }
  }
  std::ifstream file(flags["--spec"]);
  const std::string spec{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (preflight) return Preflight(spec, flags["--result"]);
  if (devices) return Devices(flags["--result"]);

  std::printf("threads %s\n", std::getenv("OMP_NUM_THREADS"));
  const char* const gpus = std::getenv("CUDA_VISIBLE_DEVICES");
  if (gpus == nullptr) {
    std::printf("GPUs of all jobs\n");
  } else if (*gpus != '\0') {
    std::printf("GPUs %s\n", gpus);
    cpu_set_t cpus;
    if (::sched_getaffinity(0, sizeof(cpus), &cpus) == 0) {
      std::printf("CPUs %d\n", CPU_COUNT(&cpus));
    }
  }
  std::fflush(stdout);
  ::signal(SIGTERM, [](int) {
    if (!stubborn) ::_exit(15);
  });
  ps::control::TaskReadyT ready;
  ready.records = spec.size();
  Say(Make(std::move(ready)));
  while (true) {
    std::uint32_t length = 0;
    const bool read = ReadAll(&length, sizeof(length));
    // One that does not stop does not mind that its agent has closed the channel either.
    while (!read && stubborn) ::pause();
    if (!read || length > ps::control::kMaxMessageBytes) return 8;
    std::vector<std::byte> bytes(length);
    if (!ReadAll(bytes.data(), bytes.size())) return 8;
    auto message = ps::control::Decode(bytes);
    if (!message.ok()) return 8;
    switch (message->body.type) {
      case ps::control::Body::TaskStart: {
        const auto& start = *message->body.AsTaskStart();
        if (MakeRing(flags["--ring"], std::stoull(flags["--ring-bytes"]), start) != 0) return 6;
        ps::control::ProgressT progress;
        progress.steps = 3;
        Say(Make(std::move(progress)));
        Say(Make(ps::control::LeaseRequestT()));
        // Not for a task to say; with a number that is not its own.
        Say(Make(ps::control::TaskExitedT(), 12345));
        break;
      }
      case ps::control::Body::Drain: Say(Make(ps::control::DrainedT(), 12345)); break;
      case ps::control::Body::RoundBegin: stubborn = true; break;
      case ps::control::Body::Evaluate: {
        std::fprintf(stderr, "ends with %d\n", static_cast<int>(message->body.AsEvaluate()->round));
        return End(message->body.AsEvaluate()->round);
      }
      case ps::control::Body::StopTask:
        if (!stubborn) return 0;
        break;
      default: break;
    }
  }
}
