#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cli/commands.h"
#include "cli/job_tables.h"
#include "cli/job_wait.h"
#include "cli/progress.h"
#include "common/error_id.h"
#include "common/job/document.h"
#include "common/job/job_spec.h"
#include "common/unguessable.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kLogBytes = 256 * 1024;

// ---- submit

struct SubmitOptions {
  std::string file;
  std::vector<std::string> sets;  // PATH=VALUE
  bool dry_run = false;
  bool offline = false;
  bool wait = false;
  bool quiet = false;
  std::string timeout;
};

Result<std::string> ReadJobFile(const std::string& file) {
  std::ifstream opened;
  std::istream* stream = &std::cin;
  if (file != "-") {
    std::error_code error;
    if (fs::is_directory(file, error)) {
      return Error{ErrorId::kOptionValue, file + " is a directory, not a job file"};
    }
    opened.open(file, std::ios::binary);
    if (!opened) return Error{ErrorId::kJobFileUnreadable, "cannot read the job file " + file};
    stream = &opened;
  }
  std::string text(job::kDocumentBytesMax + 1, '\0');
  stream->read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(stream->gcount()));
  if (stream->bad()) return Error{ErrorId::kFileUnreadable, "cannot read the job file " + file};
  return text;
}

Result<WaitOptions> ParseWaitOptions(const std::string& timeout, bool quiet) {
  WaitOptions options;
  options.quiet = quiet;
  if (!timeout.empty()) options.timeout_ms = PS_TRY(ParseDuration(timeout));
  return options;
}

// "users of 17, items of 17": the tables of rows and their widths; empty if the job has none.
std::string TablesText(const Json& job) {
  const Json& tables = MemberOf(job, "embedding_tables");
  std::string text;
  if (!tables.is_array()) return text;
  for (const Json& table : tables) {
    text += (text.empty() ? "" : ", ") + TextOf(table, "name") + " of " +
            CountText(NumberOf(table, "width"));
  }
  return text;
}

std::string PulledText(const Json& progress) {
  std::string text = BytesText(NumberOf(progress, "pull_bytes_per_step")) + " a step";
  if (const auto each = NumberOf(progress, "pull_bytes_per_parameter")) {
    text += ", " + DecimalText(each) + " bytes a parameter";
  }
  return text;
}

Result<std::vector<JobOverride>> ParseSets(const std::vector<std::string>& sets) {
  std::vector<JobOverride> overrides;
  for (const std::string& set : sets) {
    const std::size_t sign = set.find('=');
    if (sign == std::string::npos || sign == 0) {
      return Error{ErrorId::kOptionValue,
                   "--set " + set + ": must be PATH=VALUE, such as training.workers=4"};
    }
    overrides.push_back({set.substr(0, sign), set.substr(sign + 1)});
  }
  return overrides;
}

void WriteDryRun(std::ostream& out, OutputFormat format, const JobSpec& spec, const Json* answer) {
  Json json{{"spec", Json::parse(ResolvedJson(spec), nullptr, false)}};
  if (answer != nullptr) {
    for (const auto& item : answer->items()) {
      if (item.key() != "spec") json[item.key()] = item.value();
    }
  }
  if (format == OutputFormat::kName) {
    out << spec.name << "\n";
    return;
  }
  if (WriteStructured(out, format, json)) return;
  out << ResolvedYaml(spec);
  if (answer == nullptr) return;
  // As comments, so that the output is a job file.
  out << "# parameters: " << CountText(NumberOf(*answer, "parameters"))
      << "\n# blocks: " << CountText(NumberOf(*answer, "blocks"))
      << "\n# shards: " << CountText(NumberOf(*answer, "shards"))
      << "\n# training records: " << CountText(NumberOf(*answer, "records"))
      << "\n# test records: " << CountText(NumberOf(*answer, "test_records")) << "\n";
}

// Waits and writes the result; shared by `submit --wait`, `wait` and `cancel --wait`.
Result<ExitCode> WaitAndWrite(Globals& globals, Api& api, const std::string& job,
                              OutputFormat format, const WaitOptions& options) {
  Environment& environment = globals.environment;
  auto waited = WaitForJob(api, environment, job, options);
  if (!waited.ok()) {
    if (waited.error().code == ErrorCode::kClosed || environment.interrupted()) {
      environment.err << "ds-cli: interrupted; job " << job << " goes on. `ds-cli job wait " << job
                      << "` waits again, `ds-cli job cancel " << job << "` ends it\n";
      return ExitCode::kInterrupted;
    }
    return waited.error();
  }
  const Json& state = *waited;
  const ExitCode code = ExitCodeOfJob(state);
  if (WriteStructured(environment.out, format, Json{{"job", state}})) return code;
  if (format == OutputFormat::kName) {
    environment.out << Printable(TextOf(state, "id")) << "\n";
    return code;
  }
  environment.out << ResultText(state);
  if (code == ExitCode::kJobFailed) {
    environment.err << "ds-cli: job " << TextOf(state, "id")
                    << " failed: " << Printable(TextOf(state, "reason", "no reason is known"))
                    << " (`ds-cli job events " << TextOf(state, "id") << "`, `ds-cli job logs "
                    << TextOf(state, "id") << "`)\n";
  }
  return code;
}

Result<ExitCode> SubmitSpec(Globals& globals, const Result<JobSpec>& spec,
                            const SubmitOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const WaitOptions wait = PS_TRY(ParseWaitOptions(options.timeout, options.quiet));
  if (!spec.ok()) return spec.error();
  for (const auto& warning : JobWarnings(*spec)) {
    environment.err << options.file << ": warning: " << warning << "\n";
  }
  if (options.dry_run && options.offline) {
    WriteDryRun(environment.out, format, *spec, nullptr);
    return ExitCode::kOk;
  }
  Api api = PS_TRY(globals.OpenApi());
  const Json body{{"spec", Json::parse(ResolvedJson(*spec), nullptr, false)},
                  {"dry_run", options.dry_run},
                  {"request", std::to_string(UnguessableNumber())}};
  auto answer = api.PostRepeatable("/v1/jobs", body);
  if (!answer.ok()) {
    return answer.error().code == ErrorCode::kInvalid
               ? Annotate(answer.error(), options.file + ": ")
               : answer.error();
  }
  if (options.dry_run) {
    WriteDryRun(environment.out, format, *spec, &*answer);
    return ExitCode::kOk;
  }
  const Json& job = MemberOf(*answer, "job");
  const std::string id = TextOf(job, "id");
  if (options.wait) {
    environment.err << "submitted job " << id << " (" << spec->name << ")" << std::endl;
    return WaitAndWrite(globals, api, id, format, wait);
  }
  if (WriteStructured(environment.out, format, *answer)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    environment.out << id << "\n";
  } else {
    environment.out << "submitted job " << id << " (" << spec->name << ")\n";
  }
  return ExitCode::kOk;
}

Result<ExitCode> Submit(Globals& globals, const SubmitOptions& options) {
  const std::vector<JobOverride> overrides = PS_TRY(ParseSets(options.sets));
  const std::string text = PS_TRY(ReadJobFile(options.file));
  std::error_code error;
  const fs::path path = options.file == "-" ? fs::path("stdin") : fs::path(options.file);
  const fs::path base = fs::absolute(path, error).parent_path();
  auto spec =
      ParseJobYaml(text, options.file == "-" ? "stdin" : options.file, base.string(), overrides);
  return SubmitSpec(globals, spec, options);
}

// ---- list, get, describe

Result<ExitCode> ListJobs(Globals& globals) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json answer = PS_TRY(api.Get("/v1/jobs"));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, answer)) return ExitCode::kOk;
  const Json& jobs = MemberOf(answer, "jobs");
  if (format == OutputFormat::kName) {
    for (const Json& job : jobs) out << Printable(TextOf(job, "id")) << "\n";
    return ExitCode::kOk;
  }
  WriteJobs(out, jobs, format == OutputFormat::kWide);
  return ExitCode::kOk;
}

Result<ExitCode> ShowJob(Globals& globals, const std::string& name) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json job = PS_TRY(GetJob(api, name));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json{{"job", job}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << Printable(TextOf(job, "id")) << "\n";
  } else {
    WriteJobs(out, Json::array({job}), format == OutputFormat::kWide);
  }
  return ExitCode::kOk;
}

void WriteEvents(std::ostream& out, const Json& events, std::size_t last) {
  Table table({"TIME", "TYPE", "MESSAGE"});
  const std::size_t count = events.is_array() ? events.size() : 0;
  for (std::size_t i = count > last ? count - last : 0; i < count; ++i) {
    table.Add({TextOf(events[i], "time"), TextOf(events[i], "type"), TextOf(events[i], "message")});
  }
  out << table.ToString();
}

Result<ExitCode> DescribeJob(Globals& globals, const std::string& name) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json job = PS_TRY(GetJob(api, name));
  const std::string path = JobPath(TextOf(job, "id", name));
  const Json events = MemberOf(PS_TRY(api.Get(path + "/events?after=0")), "events");
  const Json checkpoints = MemberOf(PS_TRY(api.Get(path + "/checkpoints")), "checkpoints");
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format,
                      Json{{"job", job}, {"events", events}, {"checkpoints", checkpoints}})) {
    return ExitCode::kOk;
  }
  const Json& progress = MemberOf(job, "progress");
  std::vector<std::pair<std::string, std::string>> fields = {
      {"id", TextOf(job, "id")},
      {"name", TextOf(job, "name")},
      {"phase", TextOf(job, "phase")},
      {"reason", TextOf(job, "reason")},
      {"created", TextOf(job, "created")},
      {"started", TextOf(job, "started")},
      {"finished", TextOf(job, "finished")},
      {"generation", TextOf(job, "generation")},
      {"done", PercentOf(job) + " of " + DecimalText(NumberOf(progress, "epochs")) + " epochs"},
      {"samples", CountText(NumberOf(progress, "samples_trained")) + " of " +
                      CountText(NumberOf(progress, "samples_total")) + ", repeated " +
                      CountText(NumberOf(progress, "repeated_samples"))},
      {"steps", CountText(NumberOf(progress, "steps"))},
      {"samples/s", CountText(NumberOf(progress, "samples_per_second"))},
      {"loss", DecimalText(NumberOf(progress, "loss"))},
      {"push", BytesText(NumberOf(progress, "push_bytes_per_step")) + " a step, " +
                   DecimalText(NumberOf(progress, "push_bytes_per_entry")) + " bytes an entry"},
      {"pull", PulledText(progress)},
      {"dense", BytesText(NumberOf(progress, "dense_bytes")) + " a step"},
      {"skipped", CountText(NumberOf(progress, "skipped")) + " not finite, " +
                      CountText(NumberOf(progress, "too_old")) + " too old"},
      {"time left", DurationText(NumberOf(progress, "seconds_left"))},
  };
  if (const std::string metric = TextOf(progress, "metric_name", "metric"); metric != "none") {
    const auto push = std::find_if(fields.begin(), fields.end(),
                                   [](const auto& field) { return field.first == "push"; });
    fields.insert(push, {metric, DecimalText(NumberOf(progress, "metric"))});
  }
  if (const std::string tables = TablesText(job); !tables.empty()) {
    const auto dense = std::find_if(fields.begin(), fields.end(),
                                    [](const auto& field) { return field.first == "dense"; });
    *dense = {"tables", tables};
  }
  if (IntegerOf(progress, "overflows") > 0) {
    fields.emplace_back("overflows",
                        CountText(NumberOf(progress, "overflows")) + " steps, of the loss scale");
  }
  if (IntegerOf(progress, "implausible") > 0) {
    fields.emplace_back("implausible",
                        CountText(NumberOf(progress, "implausible")) + " steps, of which " +
                            CountText(NumberOf(progress, "implausible_redone")) +
                            " were computed again in fp32 and " +
                            CountText(NumberOf(progress, "implausible_skipped")) + " skipped");
  }
  if (const std::int64_t replicas = IntegerOf(job, "replicas"); replicas > 0) {
    fields.emplace_back("backups", CountText(static_cast<double>(replicas)) + " of a shard, of " +
                                       CountText(NumberOf(job, "replicated_shards")) + " of " +
                                       CountText(NumberOf(job, "shards")) + " shards in sync");
  }
  if (MemberOf(job, "result").is_object()) fields.emplace_back("result", ResultOf(job));
  out << FieldsText(fields) << "\nWorkers\n";
  WriteWorkers(out, MemberOf(job, "workers"));
  out << "\nCheckpoints\n";
  Table table({"ROUND", "TIME", "STEP", "SAMPLES", "SIZE"});
  for (const Json& checkpoint : checkpoints) {
    table.Add({TextOf(checkpoint, "round"), TextOf(checkpoint, "time"),
               CountText(NumberOf(checkpoint, "step")), CountText(NumberOf(checkpoint, "samples")),
               BytesText(NumberOf(checkpoint, "bytes"))});
  }
  out << table.ToString() << "\nEvents (the last 20)\n";
  WriteEvents(out, events, 20);
  return ExitCode::kOk;
}

// ---- events, logs

Result<ExitCode> ShowEvents(Globals& globals, const std::string& name, bool follow) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const std::string path = JobPath(TextOf(PS_TRY(GetJob(api, name)), "id", name));
  if (!follow) {
    const Json answer = PS_TRY(api.Get(path + "/events?after=0"));
    if (!WriteStructured(environment.out, format, answer)) {
      const Json& events = MemberOf(answer, "events");
      WriteEvents(environment.out, events, events.size());
    }
    return ExitCode::kOk;
  }
  std::int64_t seen = 0;
  while (true) {
    // The phase first: the events that belong to the end are there when it is over.
    const bool over = IsFinished(MemberOf(PS_TRY(api.Get(path)), "job"));
    const Json answer = PS_TRY(api.Get(path + "/events?after=" + std::to_string(seen)));
    for (const Json& event : MemberOf(answer, "events")) {
      seen = std::max(seen, IntegerOf(event, "seq"));
      if (format == OutputFormat::kJson) {
        environment.out << event.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
      } else {
        environment.out << Printable(TextOf(event, "time") + "  " + TextOf(event, "type") + "  " +
                                     TextOf(event, "message"))
                        << "\n";
      }
    }
    environment.out.flush();
    if (over) return ExitCode::kOk;
    if (environment.interrupted()) return ExitCode::kInterrupted;
    environment.sleep(kPollPause);
  }
}

struct LogOptions {
  std::string job;
  int worker = -1;
  bool follow = false;
};

// One worker's log as far as it was read. Lines of several workers are told apart by a prefix.
struct LogReader {
  int worker = 0;
  std::int64_t offset = 0;
  std::string rest = {};  // of a line whose end was not read yet
  std::string prefix = {};
};

void WriteLog(Environment& environment, LogReader& log, const std::string& text) {
  std::string shown = log.rest + text;
  log.rest.clear();
  if (environment.out_is_terminal) {
    for (char& c : shown) {
      if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') c = '?';
    }
  }
  if (log.prefix.empty()) {
    environment.out << shown;
    return;
  }
  std::size_t begin = 0;
  for (std::size_t end = shown.find('\n'); end != std::string::npos;
       end = shown.find('\n', begin)) {
    environment.out << log.prefix << shown.substr(begin, end - begin + 1);
    begin = end + 1;
  }
  log.rest = shown.substr(begin);
}

// Reads until the present end of the log.
Status ReadLog(Api& api, Environment& environment, const std::string& path, LogReader& log) {
  while (!environment.interrupted()) {
    const Json answer = PS_TRY(api.Get(path + "/logs?worker=" + std::to_string(log.worker) +
                                       "&offset=" + std::to_string(log.offset) +
                                       "&limit=" + std::to_string(kLogBytes)));
    const std::string text = TextOf(answer, "text");
    WriteLog(environment, log, text);
    const std::int64_t next = IntegerOf(answer, "offset", log.offset);
    const bool moved = next > log.offset;
    log.offset = std::max(log.offset, next);
    if (FlagOf(answer, "end") || text.empty() || !moved) break;
  }
  environment.out.flush();
  return Ok();
}

Result<ExitCode> ShowLogs(Globals& globals, const LogOptions& options) {
  Environment& environment = globals.environment;
  Api api = PS_TRY(globals.OpenApi());
  Json job = PS_TRY(GetJob(api, options.job));
  const std::string path = JobPath(TextOf(job, "id", options.job));
  std::vector<LogReader> logs;
  const Json& workers = MemberOf(job, "workers");
  if (options.worker >= 0 || !workers.is_array() || workers.size() < 2) {
    logs.push_back(LogReader{.worker = std::max(options.worker, 0)});
  } else {
    for (const Json& worker : workers) {
      LogReader log;
      log.worker = static_cast<int>(IntegerOf(worker, "worker"));
      log.prefix = "[" + std::to_string(log.worker) + "] ";
      logs.push_back(log);
    }
  }
  while (true) {
    std::size_t missing = 0;
    std::string reason;
    for (LogReader& log : logs) {
      const Status read = ReadLog(api, environment, path, log);
      if (read.ok()) continue;
      // A task that has not started has no log; one of several workers may be away.
      const bool bearable = read.error().code == ErrorCode::kNotFound ||
                            (options.follow && read.error().code == ErrorCode::kUnreachable);
      if (!bearable) return read.error();
      ++missing;
      reason = read.error().message;
    }
    if (environment.interrupted()) return ExitCode::kInterrupted;
    if (!options.follow || IsFinished(job)) {
      for (const LogReader& log : logs) {
        if (!log.rest.empty()) environment.out << log.prefix << log.rest << "\n";
      }
      if (missing == logs.size()) return Error{ErrorId::kNoLog, reason};
      return ExitCode::kOk;
    }
    environment.sleep(kPollPause);
    auto again = GetJob(api, TextOf(job, "id", options.job));
    if (again.ok()) {
      job = std::move(again).value();
    } else if (again.error().code != ErrorCode::kUnreachable) {
      return again.error();
    }
  }
}

// ---- wait, cancel

// "job 3 (mnist) is running", of an answer with a job.
void WritePhase(std::ostream& out, OutputFormat format, const Json& answer) {
  if (WriteStructured(out, format, answer)) return;
  const Json& job = MemberOf(answer, "job");
  if (format == OutputFormat::kName) {
    out << Printable(TextOf(job, "id")) << "\n";
    return;
  }
  out << Printable("job " + TextOf(job, "id") + " (" + TextOf(job, "name") + ") is " +
                   TextOf(job, "phase"))
      << (FlagOf(job, "suspending") ? ", and suspended with its next checkpoint" : "") << "\n";
}

struct WaitCommand {
  std::string job;
  std::string timeout;
  bool quiet = false;
};

Result<ExitCode> Wait(Globals& globals, const WaitCommand& command) {
  const OutputFormat format = PS_TRY(globals.Format());
  const WaitOptions options = PS_TRY(ParseWaitOptions(command.timeout, command.quiet));
  Api api = PS_TRY(globals.OpenApi());
  return WaitAndWrite(globals, api, command.job, format, options);
}

struct CancelCommand {
  std::string job;
  std::string reason;
  bool wait = false;
  std::string timeout;
};

Result<ExitCode> Cancel(Globals& globals, const CancelCommand& command) {
  const OutputFormat format = PS_TRY(globals.Format());
  WaitOptions options = PS_TRY(ParseWaitOptions(command.timeout, true));
  Api api = PS_TRY(globals.OpenApi());
  const Json answer =
      PS_TRY(api.Post(JobPath(command.job) + "/cancel", Json{{"reason", command.reason}}));
  const Json& job = MemberOf(answer, "job");
  if (command.wait) {
    const auto code =
        PS_TRY(WaitAndWrite(globals, api, TextOf(job, "id", command.job), format, options));
    return code == ExitCode::kJobCancelled ? ExitCode::kOk : code;
  }
  WritePhase(globals.environment.out, format, answer);
  return ExitCode::kOk;
}

// What submit and restart have in common. Returns --dry-run.
CLI::Option* AddSubmitOptions(CLI::App& command, SubmitOptions& options) {
  command
      .add_option("--set", options.sets,
                  "Instead of what the file says, or beside it; may be repeated")
      ->allow_extra_args(false)
      ->type_name("PATH=VALUE");
  auto* dry = command.add_flag("--dry-run", options.dry_run,
                               "Check everything, start nothing, print the resolved spec");
  auto* wait = command.add_flag("--wait", options.wait, "Show progress until the job is over")
                   ->excludes(dry);
  command.add_option("--timeout", options.timeout, "End the wait (124), not the job, after this")
      ->needs(wait)
      ->type_name("TIME");
  command.add_flag("-q,--quiet", options.quiet, "With --wait: no progress")->needs(wait);
  return dry;
}

void AddSubmit(CLI::App& group, Globals& globals) {
  CLI::App* command = AddCommand(group, "submit", "Check a job file and start the job",
                                 "  ds-cli job submit job.yaml --wait\n"
                                 "  ds-cli job submit job.yaml --dry-run\n"
                                 "  ds-cli job submit job.yaml --set training.workers=4 "
                                 "--set 'model.layers=[784, 64, 10]'\n"
                                 "  ds-cli job submit - -o name < job.yaml\n",
                                 globals);
  const auto options = std::make_shared<SubmitOptions>();
  command->add_option("file", options->file, "The job file (docs/job-file.md); - is stdin")
      ->required();
  auto* dry = AddSubmitOptions(*command, *options);
  command->add_flag("--offline", options->offline, "With --dry-run: check the file alone")
      ->needs(dry);
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Submit(globals, *options); };
  });
}

// ---- suspend, resume, restart

struct PhaseCommand {
  std::string job;
  bool wait = false;
  bool quiet = false;
  std::string timeout;
};

// `verb`: of the API; `phase`: what it leads to.
Result<ExitCode> ChangePhase(Globals& globals, const PhaseCommand& command, const char* verb,
                             const char* phase) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  WaitOptions options = PS_TRY(ParseWaitOptions(command.timeout, command.quiet));
  options.phase = phase;
  Api api = PS_TRY(globals.OpenApi());
  Json answer = PS_TRY(api.Post(JobPath(command.job) + "/" + verb, Json::object()));
  const std::string id = TextOf(MemberOf(answer, "job"), "id", command.job);
  if (command.wait) answer["job"] = PS_TRY(WaitForJob(api, environment, id, options));
  WritePhase(environment.out, format, answer);
  return IsFinished(MemberOf(answer, "job")) && command.wait ? ExitCode::kConflict : ExitCode::kOk;
}

void AddPhaseCommand(CLI::App& group, Globals& globals, const char* verb, const char* phase,
                     const char* description, const char* examples) {
  CLI::App* command = AddCommand(group, verb, description, examples, globals);
  const auto options = std::make_shared<PhaseCommand>();
  command->add_option("job", options->job, "Number or name (then the newest)")->required();
  auto* wait = command->add_flag("--wait", options->wait, std::string("Until it is ") + phase);
  command->add_option("--timeout", options->timeout, "End the wait (124) after this time")
      ->needs(wait)
      ->type_name("TIME");
  command->add_flag("-q,--quiet", options->quiet, "With --wait: no progress")->needs(wait);
  command->callback([&globals, options, verb, phase] {
    globals.action = [&globals, options, verb, phase] {
      return ChangePhase(globals, *options, verb, phase);
    };
  });
}

struct RestartCommand {
  std::string job;
  std::optional<std::uint64_t> from;
  SubmitOptions submit;
};

// A job that is over is begun again, as another one, with what it was submitted as.
Result<ExitCode> Restart(Globals& globals, RestartCommand& command) {
  std::vector<JobOverride> overrides = PS_TRY(ParseSets(command.submit.sets));
  Api api = PS_TRY(globals.OpenApi());
  const Json job = PS_TRY(GetJob(api, command.job));
  const std::string id = TextOf(job, "id", command.job);
  if (!IsFinished(job)) {
    return Error{ErrorId::kJobNotOver,
                 "job " + id + " is " + TextOf(job, "phase") + ": " +
                     (TextOf(job, "phase") == "suspended"
                          ? "`ds-cli job resume " + id + "` goes on with it"
                          : "`ds-cli ckpt rollback` takes it back to a checkpoint, and `ds-cli job "
                            "cancel " +
                                id + "` ends it")};
  }
  std::optional<std::uint64_t> from = command.from;
  const Json& newest = MemberOf(job, "last_checkpoint");
  if (!from && newest.is_object()) from = static_cast<std::uint64_t>(IntegerOf(newest, "round"));
  Json spec = MemberOf(job, "spec");
  if (!spec.is_object()) {
    return Error{ErrorCode::kInternal, "the coordinator does not say what job " + id + " was"};
  }
  // What it began with is in its checkpoints.
  if (from) {
    spec["checkpoint"]["from"] = id + "@" + std::to_string(*from);
    spec["checkpoint"].erase("load");
  }
  command.submit.file = "job " + id;
  return SubmitSpec(globals, ParseJobYaml(spec.dump(), command.submit.file, "/", overrides),
                    command.submit);
}

void AddSuspension(CLI::App& group, Globals& globals) {
  AddPhaseCommand(group, globals, "suspend", "suspended",
                  "Take a job off the cluster with a checkpoint, to go on with it later",
                  "  ds-cli job suspend fashion-mlp --wait\n");
  AddPhaseCommand(group, globals, "resume", "running", "Go on with a job that is suspended",
                  "  ds-cli job resume fashion-mlp\n");

  CLI::App* restart = AddCommand(
      group, "restart", "Begin a job that is over again, from a checkpoint of it, as a new job",
      "  ds-cli job restart fashion-mlp\n"
      "  ds-cli job restart 7 --from 12 --set training.epochs=20 --wait\n",
      globals);
  const auto options = std::make_shared<RestartCommand>();
  restart->add_option("job", options->job, "Number or name (then the newest)")->required();
  restart->add_option("--from", options->from,
                      "Checkpoint to begin with (its newest; none if it has none)");
  AddSubmitOptions(*restart, options->submit);
  restart->callback([&globals, options] {
    globals.action = [&globals, options] { return Restart(globals, *options); };
  });
}

Result<ExitCode> Rebalance(Globals& globals, const std::string& name, bool dry_run) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json answer = PS_TRY(api.Post(JobPath(name) + "/rebalance", Json{{"dry_run", dry_run}}));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, answer)) return ExitCode::kOk;
  const Json& moves = MemberOf(answer, "moves");
  if (moves.empty()) {
    out << "no server has two copies of shards more than another\n";
  } else if (!dry_run) {
    out << CountText(static_cast<std::int64_t>(moves.size()))
        << " copies of shards are to move; `ds-cli job events " << Printable(name)
        << "` says when they have\n";
  } else {
    Table table({"SHARD", "LEAVES"});
    for (const Json& move : moves) table.Add({TextOf(move, "shard"), TextOf(move, "from")});
    out << table.ToString();
  }
  return ExitCode::kOk;
}

void AddRebalance(CLI::App& group, Globals& globals) {
  CLI::App* command = AddCommand(
      group, "rebalance",
      "Even out how many copies of shards the servers have, while training goes on",
      "  ds-cli job rebalance fashion-mlp --dry-run\n  ds-cli job rebalance 7\n", globals);
  const auto job = std::make_shared<std::string>();
  const auto dry_run = std::make_shared<bool>(false);
  command->add_option("job", *job, "Number or name (then the newest)")->required();
  command->add_flag("--dry-run", *dry_run, "Move nothing, show what would leave its server");
  command->callback([&globals, job, dry_run] {
    globals.action = [&globals, job, dry_run] { return Rebalance(globals, *job, *dry_run); };
  });
}

void AddWaitAndCancel(CLI::App& group, Globals& globals) {
  CLI::App* wait = AddCommand(group, "wait",
                              "Show progress until a job is over; exits 8 if it failed, 9 if it "
                              "was cancelled",
                              "  ds-cli job wait fashion-mlp\n"
                              "  ds-cli job wait 7 --timeout 10m -o json\n",
                              globals);
  const auto wait_options = std::make_shared<WaitCommand>();
  wait->add_option("job", wait_options->job, "Number or name (then the newest)")->required();
  wait->add_option("--timeout", wait_options->timeout, "Exit 124 after this time; the job goes on")
      ->type_name("TIME");
  wait->add_flag("-q,--quiet", wait_options->quiet, "No progress");
  wait->callback([&globals, wait_options] {
    globals.action = [&globals, wait_options] { return Wait(globals, *wait_options); };
  });

  CLI::App* cancel = AddCommand(group, "cancel", "End a job",
                                "  ds-cli job cancel fashion-mlp\n"
                                "  ds-cli job cancel 7 --reason 'wrong data' --wait\n",
                                globals);
  const auto cancel_options = std::make_shared<CancelCommand>();
  cancel->add_option("job", cancel_options->job, "Number or name (then the newest)")->required();
  cancel->add_option("--reason", cancel_options->reason, "Shown with the job");
  auto* flag = cancel->add_flag("--wait", cancel_options->wait, "Until it is over");
  cancel->add_option("--timeout", cancel_options->timeout, "End the wait (124) after this time")
      ->needs(flag)
      ->type_name("TIME");
  cancel->callback([&globals, cancel_options] {
    globals.action = [&globals, cancel_options] { return Cancel(globals, *cancel_options); };
  });
}

void AddReaders(CLI::App& group, Globals& globals) {
  AddCommand(group, "list", "List the jobs",
             "  ds-cli job list\n  ds-cli job list -o wide\n  ds-cli job list -o json\n", globals)
      ->callback([&globals] { globals.action = [&globals] { return ListJobs(globals); }; });

  using Show = Result<ExitCode> (*)(Globals&, const std::string&);
  const auto add = [&](const char* name, const char* description, const char* examples, Show show) {
    CLI::App* command = AddCommand(group, name, description, examples, globals);
    const auto job = std::make_shared<std::string>();
    command->add_option("job", *job, "Number or name (then the newest)")->required();
    command->callback([&globals, job, show] {
      globals.action = [&globals, job, show] { return show(globals, *job); };
    });
  };
  add("get", "Show one job", "  ds-cli job get 7\n  ds-cli job get fashion-mlp -o json\n", ShowJob);
  add("describe", "Show all about one job: progress, workers, checkpoints, events",
      "  ds-cli job describe fashion-mlp\n", DescribeJob);

  CLI::App* events = AddCommand(group, "events", "Show what happened to a job",
                                "  ds-cli job events 7\n  ds-cli job events 7 -f\n", globals);
  const auto name = std::make_shared<std::string>();
  const auto follow = std::make_shared<bool>(false);
  events->add_option("job", *name, "Number or name (then the newest)")->required();
  events->add_flag("-f,--follow", *follow, "Go on until the job is over");
  events->callback([&globals, name, follow] {
    globals.action = [&globals, name, follow] { return ShowEvents(globals, *name, *follow); };
  });

  CLI::App* logs = AddCommand(group, "logs", "Show what the worker tasks of a job wrote",
                              "  ds-cli job logs 7\n  ds-cli job logs 7 --worker 1 -f\n", globals);
  const auto log_options = std::make_shared<LogOptions>();
  logs->add_option("job", log_options->job, "Number or name (then the newest)")->required();
  logs->add_option("-w,--worker", log_options->worker, "Of one worker only")
      ->check(CLI::Range(0, 1023));
  logs->add_flag("-f,--follow", log_options->follow, "Go on until the job is over");
  logs->callback([&globals, log_options] {
    globals.action = [&globals, log_options] { return ShowLogs(globals, *log_options); };
  });
}

}  // namespace

void AddJobCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "job", "Training jobs");
  AddSubmit(*group, globals);
  AddExplainCommand(*group, globals);
  AddReaders(*group, globals);
  AddWhyCommand(*group, globals);
  AddWaitAndCancel(*group, globals);
  AddSuspension(*group, globals);
  AddRebalance(*group, globals);
}

}  // namespace ps::cli
