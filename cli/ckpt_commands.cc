#include <filesystem>
#include <set>

#include "checkpoint/export.h"
#include "checkpoint/verify.h"
#include "cli/commands.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

Result<Json> ListCheckpoints(Api& api, const std::string& job) {
  const Json answer = PS_TRY(api.Get("/v1/jobs/" + UrlEncode(job) + "/checkpoints"));
  return MemberOf(answer, "checkpoints");
}

std::string BasesText(const Json& checkpoint) {
  std::string text;
  for (const Json& base : MemberOf(checkpoint, "bases")) {
    if (base.is_number()) text += (text.empty() ? "" : ",") + base.dump();
  }
  return text.empty() ? "-" : text;
}

Result<ExitCode> List(Globals& globals, const std::string& job) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json checkpoints = PS_TRY(ListCheckpoints(api, job));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json{{"checkpoints", checkpoints}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const Json& checkpoint : checkpoints) {
      out << job << "@" << Printable(TextOf(checkpoint, "round")) << "\n";
    }
    return ExitCode::kOk;
  }
  std::vector<std::string> header = {"ROUND", "TIME", "STEP", "SAMPLES", "SIZE", "FINAL"};
  const bool wide = format == OutputFormat::kWide;
  if (wide) {
    header.emplace_back("STATE");
    header.emplace_back("BUILDS ON");
    header.emplace_back("DAMAGED");
    header.emplace_back("SHARDS");
    header.emplace_back("MANIFEST");
    header.emplace_back("DIRECTORY");
  }
  Table table(header);
  for (const Json& checkpoint : checkpoints) {
    std::vector<std::string> row = {TextOf(checkpoint, "round"),
                                    TextOf(checkpoint, "time"),
                                    CountText(NumberOf(checkpoint, "step")),
                                    CountText(NumberOf(checkpoint, "samples")),
                                    BytesText(NumberOf(checkpoint, "bytes")),
                                    FlagOf(checkpoint, "final") ? "yes" : "no"};
    if (wide) {
      row.push_back(BytesText(NumberOf(checkpoint, "state_bytes")));
      row.push_back(BasesText(checkpoint));
      row.push_back(FlagOf(checkpoint, "damaged") ? "yes" : "no");
      row.push_back(TextOf(checkpoint, "shards"));
      row.push_back(TextOf(checkpoint, "manifest_hash"));
      row.push_back(TextOf(checkpoint, "directory"));
    }
    table.Add(row);
  }
  out << table.ToString();
  return ExitCode::kOk;
}

struct CheckpointOptions {
  std::string name;  // JOB or JOB@ROUND
  std::string directory;
  std::string root;
  std::string output;  // export
};

// A checkpoint on this machine's disk, and the hash that the cluster committed for it.
struct Located {
  fs::path directory;
  std::string hash;  // empty: unknown, for --dir
};

Result<Located> Locate(Globals& globals, const CheckpointOptions& options) {
  if (!options.directory.empty()) return Located{options.directory, ""};
  if (options.name.empty()) {
    return Error{ErrorCode::kUsage, "name a checkpoint (JOB or JOB@ROUND) or give --dir DIR"};
  }
  const auto at = options.name.find('@');
  const std::string job = options.name.substr(0, at);
  const std::string round = at == std::string::npos ? "" : options.name.substr(at + 1);
  Api api = PS_TRY(globals.OpenApi());
  const Json checkpoints = PS_TRY(ListCheckpoints(api, job));
  if (!checkpoints.is_array() || checkpoints.empty()) {
    return Error{ErrorCode::kNotFound, "job " + job + " has no checkpoint yet"};
  }
  const Json* found = nullptr;
  for (const Json& checkpoint : checkpoints) {
    const bool newer =
        found == nullptr || IntegerOf(checkpoint, "round") > IntegerOf(*found, "round");
    if (round.empty() ? newer : TextOf(checkpoint, "round") == round) found = &checkpoint;
  }
  if (found == nullptr) {
    return Error{ErrorCode::kNotFound, "job " + job + " has no checkpoint " + round +
                                           " (`ds-cli ckpt list " + job + "`)"};
  }
  fs::path directory = TextOf(*found, "directory");
  if (directory.is_relative()) {
    // The cluster knows it relative to the servers' --checkpoint-dir.
    if (!options.root.empty()) {
      directory = options.root / directory;
    } else {
      const auto context = ReadContextFile(globals.environment);
      if (!context.ok() || context->directory.empty()) {
        return Error{ErrorCode::kUsage,
                     "give --checkpoint-dir, the --checkpoint-dir of the "
                     "servers, or --dir: the checkpoint is " +
                         directory.string() + " below it"};
      }
      directory = fs::path(context->directory) / "checkpoints" / directory;
    }
  }
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return Error{ErrorCode::kNotFound,
                 directory.string() +
                     " is not on this machine; run this where the servers store "
                     "checkpoints, or name another place with --checkpoint-dir"};
  }
  return Located{directory, TextOf(*found, "manifest_hash")};
}

const char* RuleText(TableRule rule) {
  switch (rule) {
    case TableRule::Sgd: return "sgd";
    case TableRule::Average: return "average";
    case TableRule::Maximum: return "maximum";
  }
  return "?";
}

std::uint64_t BytesOf(const checkpoint::Manifest& manifest) {
  std::uint64_t bytes = 0;
  for (const auto& shard : manifest.shards) bytes += shard.bytes;
  return bytes;
}

std::uint64_t StateBytesOf(const checkpoint::Manifest& manifest) {
  std::uint64_t bytes = 0;
  for (const auto& shard : manifest.shards) bytes += shard.state_bytes;
  return bytes;
}

std::string BasesText(const checkpoint::Manifest& manifest) {
  std::set<Round> bases;
  for (const auto& shard : manifest.shards) bases.insert(shard.bases.begin(), shard.bases.end());
  std::string text;
  for (auto base = bases.rbegin(); base != bases.rend(); ++base) {
    text += (text.empty() ? "" : ",") + std::to_string(base->value());
  }
  return text.empty() ? "-" : text;
}

Result<ExitCode> Describe(Globals& globals, const CheckpointOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  const Located located = PS_TRY(Locate(globals, options));
  const std::string text = PS_TRY(checkpoint::FindManifest(located.directory, located.hash));
  auto parsed = checkpoint::FromJson(text);
  if (!parsed.ok()) return Annotate(parsed.error(), located.directory.string() + ": ");
  const checkpoint::Manifest& manifest = *parsed;
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json::parse(text, nullptr, false))) return ExitCode::kOk;
  const std::string name = manifest.job_name + "@" + std::to_string(manifest.round.value());
  if (format == OutputFormat::kName) {
    out << Printable(name) << "\n";
    return ExitCode::kOk;
  }
  std::uint64_t remaining = 0;
  for (const auto& range : manifest.data.remaining) remaining += range.end - range.begin;
  out << FieldsText({{"checkpoint", name},
                     {"job", std::to_string(manifest.job.value())},
                     {"directory", located.directory.string()},
                     {"manifest", checkpoint::Hash(text)},
                     {"final", manifest.final_round ? "yes" : "no"},
                     {"generation", std::to_string(manifest.generation)},
                     {"step", CountText(static_cast<std::int64_t>(manifest.step))},
                     {"samples", CountText(static_cast<std::int64_t>(manifest.samples))},
                     {"to be trained", CountText(static_cast<std::int64_t>(remaining))},
                     {"shards", std::to_string(manifest.shards.size())},
                     {"size", BytesText(static_cast<double>(BytesOf(manifest)))},
                     {"state", BytesText(static_cast<double>(StateBytesOf(manifest)))},
                     {"builds on", BasesText(manifest)},
                     {"written by", manifest.program_version}});
  out << "\nTables\n";
  Table tables({"TABLE", "RULE", "ELEMENTS", "TENSORS"});
  for (const auto& table : manifest.tables) {
    tables.Add({table.name, RuleText(table.rule),
                CountText(static_cast<std::int64_t>(table.elements)),
                std::to_string(table.tensors.size())});
  }
  out << tables.ToString();
  if (format == OutputFormat::kWide) {
    out << "\nShards\n";
    Table shards({"SHARD", "SERVER", "EPOCH", "VERSION", "SIZE", "STATE", "DIGEST"});
    for (const auto& shard : manifest.shards) {
      shards.Add({std::to_string(shard.shard.value()), shard.server,
                  std::to_string(shard.epoch.value()), std::to_string(shard.version),
                  BytesText(static_cast<double>(shard.bytes)),
                  BytesText(static_cast<double>(shard.state_bytes)), shard.digest});
    }
    out << shards.ToString();
  }
  return ExitCode::kOk;
}

checkpoint::VerifyProgress ShowShards(Environment& environment) {
  return [&environment](std::uint32_t done, std::uint32_t total) {
    if (!environment.err_is_terminal) return;
    environment.err << "\rshard " << done << " of " << total << std::flush;
  };
}

void EndShards(Environment& environment) {
  if (environment.err_is_terminal) environment.err << "\r\x1b[K" << std::flush;
}

Result<ExitCode> Export(Globals& globals, const CheckpointOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const Located located = PS_TRY(Locate(globals, options));
  auto exported = checkpoint::ExportCheckpoint(located.directory, located.hash, options.output,
                                               ShowShards(environment));
  EndShards(environment);
  const auto report = PS_TRY(std::move(exported));
  std::uint64_t bytes = 0;
  Json files = Json::array();
  for (const auto& file : report.files) {
    bytes += file.bytes;
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"digest", file.digest}});
  }
  const Json json{{"directory", options.output},
                  {"job", report.manifest.job_name},
                  {"round", report.manifest.round.value()},
                  {"bytes", bytes},
                  {"files", files}};
  std::ostream& out = environment.out;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const auto& file : report.files)
      out << (fs::path(options.output) / file.name).string() << "\n";
    return ExitCode::kOk;
  }
  Table table({"FILE", "SIZE", "DIGEST"});
  for (const auto& file : report.files) {
    table.Add({Printable(file.name), BytesText(static_cast<double>(file.bytes)), file.digest});
  }
  out << "checkpoint " << report.manifest.round << " of " << Printable(report.manifest.job_name)
      << " is in " << Printable(options.output) << "\n"
      << table.ToString();
  return ExitCode::kOk;
}

Result<ExitCode> Verify(Globals& globals, const CheckpointOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const Located located = PS_TRY(Locate(globals, options));
  auto verified = checkpoint::VerifyCheckpoint(located.directory, ShowShards(environment));
  EndShards(environment);
  auto report = PS_TRY(std::move(verified));
  if (!located.hash.empty() && located.hash != report.manifest_hash) {
    report.findings.push_back("the manifest has the hash " + report.manifest_hash +
                              ", the cluster committed " + located.hash);
  }
  const ExitCode code = report.findings.empty() ? ExitCode::kOk : ExitCode::kFindings;
  Json json{{"directory", located.directory.string()},
            {"round", report.manifest.round.value()},
            {"manifest_hash", report.manifest_hash},
            {"bytes", report.bytes},
            {"shards", report.manifest.shards.size()},
            {"good_shards", report.shards},
            {"findings", report.findings}};
  if (WriteStructured(environment.out, format, json)) return code;
  for (const auto& finding : report.findings) environment.out << Printable(finding) << "\n";
  if (code == ExitCode::kOk) {
    environment.out << "checkpoint " << report.manifest.round << " of "
                    << Printable(report.manifest.job_name) << " is good: " << report.shards
                    << " shards, " << BytesText(static_cast<double>(report.bytes)) << " read\n";
  } else {
    environment.err << "ds-cli: " << Printable(located.directory.string()) << ": "
                    << report.findings.size()
                    << (report.findings.size() == 1 ? " finding, " : " findings, ") << report.shards
                    << " of " << report.manifest.shards.size() << " shards are good\n";
  }
  return code;
}

// The command, and the options that its callback reads.
std::pair<CLI::App*, std::shared_ptr<CheckpointOptions>> AddLocated(
    CLI::App& group, Globals& globals, const char* name, const char* description,
    const char* examples, Result<ExitCode> (*run)(Globals&, const CheckpointOptions&)) {
  CLI::App* command = AddCommand(group, name, description, examples, globals);
  const auto options = std::make_shared<CheckpointOptions>();
  auto* positional =
      command->add_option("checkpoint", options->name, "JOB (its newest checkpoint) or JOB@ROUND");
  command->add_option("--dir", options->directory, "A checkpoint's directory; needs no coordinator")
      ->excludes(positional)
      ->type_name("DIR");
  command->add_option("--checkpoint-dir", options->root, "Where the servers store checkpoints")
      ->type_name("DIR");
  command->callback([&globals, options, run] {
    globals.action = [&globals, options, run] { return run(globals, *options); };
  });
  return {command, options};
}

}  // namespace

void AddCkptCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "ckpt", "Checkpoints of jobs");
  CLI::App* list =
      AddCommand(*group, "list", "List the checkpoints of a job",
                 "  ds-cli ckpt list fashion-mlp\n  ds-cli ckpt list 7 -o wide\n", globals);
  const auto job = std::make_shared<std::string>();
  list->add_option("job", *job, "Number or name (then the newest)")->required();
  list->callback(
      [&globals, job] { globals.action = [&globals, job] { return List(globals, *job); }; });
  AddLocated(*group, globals, "describe", "Show what a checkpoint holds",
             "  ds-cli ckpt describe fashion-mlp@3\n  ds-cli ckpt describe --dir DIR -o json\n",
             Describe);
  AddLocated(*group, globals, "verify",
             "Read every byte of a checkpoint and compare it with its digests; exits 10 if "
             "something is wrong",
             "  ds-cli ckpt verify fashion-mlp\n  ds-cli ckpt verify --dir DIR\n", Verify);
  const auto [command, options] = AddLocated(
      *group, globals, "export",
      "Write a checkpoint as files for other programs: model.safetensors, and .npy of tables of "
      "rows",
      "  ds-cli ckpt export fashion-mlp --to model\n  ds-cli ckpt export --dir DIR --to model\n",
      Export);
  command->add_option("--to", options->output, "The folder to write, which must not exist")
      ->required()
      ->type_name("FOLDER");
}

}  // namespace ps::cli
