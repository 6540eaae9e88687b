#include <filesystem>
#include <set>

#include "checkpoint/diff.h"
#include "checkpoint/export.h"
#include "checkpoint/verify.h"
#include "cli/backup_list.h"
#include "cli/checkpoint_files.h"
#include "cli/commands.h"
#include "common/error_id.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

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
  std::vector<std::string> header = {"ROUND", "TIME", "STEP", "SAMPLES", "SIZE", "FINAL", "PINNED"};
  const bool wide = format == OutputFormat::kWide;
  if (wide) {
    header.emplace_back("STATE");
    header.emplace_back("BUILDS ON");
    header.emplace_back("DAMAGED");
    header.emplace_back("COPIES");
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
                                    FlagOf(checkpoint, "final") ? "yes" : "no",
                                    FlagOf(checkpoint, "pinned") ? "yes" : "no"};
    if (wide) {
      row.push_back(BytesText(NumberOf(checkpoint, "state_bytes")));
      row.push_back(BasesText(checkpoint));
      row.push_back(FlagOf(checkpoint, "damaged") ? "yes" : "no");
      row.push_back(TextOf(checkpoint, "copies"));
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

Result<Located> Locate(Globals& globals, const CheckpointOptions& options) {
  if (!options.directory.empty()) return Located{options.directory, "", nullptr};
  if (options.name.empty()) {
    return Error{ErrorId::kCommandLine, "name a checkpoint (JOB or JOB@ROUND) or give --dir DIR"};
  }
  const auto [job, round] = SplitRound(options.name);
  return LocateRound(globals, job, round, options.root);
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

// Of checkpoint.flush_residuals.
std::string ResidualsText(const checkpoint::Manifest& manifest) {
  const auto flushed = std::count_if(manifest.cuts.begin(), manifest.cuts.end(),
                                     [](const auto& cut) { return cut.flushed; });
  return "pushed before the cut by " + std::to_string(flushed) + " of " +
         std::to_string(manifest.cuts.size()) + " workers";
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
                     {"residuals", ResidualsText(manifest)},
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

// ---- retention

struct RoundOptions {
  std::string job;
  std::uint64_t round = 0;
  bool yes = false;  // rollback
};

std::string RoundsText(const Json& rounds) {
  std::string text;
  if (rounds.is_array()) {
    for (const Json& round : rounds) {
      if (round.is_number()) text += (text.empty() ? "" : ", ") + round.dump();
    }
  }
  return text.empty() ? "none" : text;
}

Result<ExitCode> SetPin(Globals& globals, const RoundOptions& options, bool pinned) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const std::string round = std::to_string(options.round);
  const Json answer = PS_TRY(api.Post(
      "/v1/jobs/" + UrlEncode(options.job) + "/checkpoints/" + round + (pinned ? "/pin" : "/unpin"),
      Json::object()));
  const Json checkpoint = MemberOf(answer, "checkpoint");
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json{{"checkpoint", checkpoint}})) return ExitCode::kOk;
  const std::string name = Printable(options.job) + "@" + round;
  if (format == OutputFormat::kName) {
    out << name << "\n";
  } else {
    out << "checkpoint " << name << (pinned ? " is pinned" : " is not pinned") << "\n";
  }
  return ExitCode::kOk;
}

struct PruneOptions {
  std::string job;
  std::uint64_t keep = 0;  // 0: as the job says
  bool all = false;
  bool dry_run = false;
};

Result<ExitCode> Prune(Globals& globals, const PruneOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  Json body{{"dry_run", options.dry_run}};
  if (options.keep > 0) body["keep"] = options.keep;
  if (options.all) body["all"] = true;
  const Json answer =
      PS_TRY(api.Post("/v1/jobs/" + UrlEncode(options.job) + "/checkpoints/prune", body));
  const Json json{{"removed", MemberOf(answer, "removed")},
                  {"needed", MemberOf(answer, "needed")},
                  {"kept", MemberOf(answer, "kept")},
                  {"bytes", MemberOf(answer, "bytes")},
                  {"dry_run", options.dry_run}};
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const Json& round : json["removed"]) {
      out << Printable(options.job) << "@" << round.dump() << "\n";
    }
    return ExitCode::kOk;
  }
  out << FieldsText(
      {{options.dry_run ? "would be removed" : "removed", RoundsText(json["removed"])},
       {"of these needed by others", RoundsText(json["needed"])},
       {"kept", RoundsText(json["kept"])},
       {options.dry_run ? "would be freed" : "freed", BytesText(NumberOf(json, "bytes"))}});
  return ExitCode::kOk;
}

Result<ExitCode> RollBack(Globals& globals, const RoundOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  auto posted = api.Post("/v1/jobs/" + UrlEncode(options.job) + "/rollback",
                         Json{{"round", options.round}, {"confirm", options.yes}});
  if (!posted.ok()) {
    Error error = posted.error();
    if (!options.yes && error.code == ErrorCode::kConflict) error.message += " (with --yes)";
    return error;
  }
  const Json& answer = *posted;
  const Json json{{"round", MemberOf(answer, "round")},
                  {"step", MemberOf(answer, "step")},
                  {"discarded", MemberOf(answer, "discarded")}};
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << Printable(options.job) << "@" << options.round << "\n";
    return ExitCode::kOk;
  }
  out << "job " << Printable(options.job) << " goes back to checkpoint " << options.round
      << " at step " << CountText(NumberOf(json, "step"))
      << "; checkpoints discarded: " << RoundsText(json["discarded"]) << "\n";
  return ExitCode::kOk;
}

// ---- differences

struct DiffOptions {
  std::string job;
  std::string before;  // a round
  std::string after;
  std::string root;
};

Json ValuesJson(const checkpoint::ValuesDiff& values) {
  return {{"before_norm", values.before_norm},
          {"difference_norm", values.difference_norm},
          {"largest", values.largest},
          {"nonfinite", values.nonfinite}};
}

Json DiffJson(const checkpoint::DiffReport& report) {
  Json tables = Json::array();
  for (const auto& table : report.tables) {
    Json entry{{"name", table.name},
               {"blocks", table.blocks},
               {"blocks_changed", table.blocks_changed},
               {"elements", table.elements},
               {"elements_changed", table.elements_changed}};
    entry.update(ValuesJson(table.values));
    tables.push_back(std::move(entry));
  }
  Json row_tables = Json::array();
  for (const auto& table : report.row_tables) {
    Json entry{{"name", table.name},
               {"rows_before", table.rows_before},
               {"rows_after", table.rows_after},
               {"rows_added", table.rows_added},
               {"rows_removed", table.rows_removed},
               {"rows_changed", table.rows_changed}};
    entry.update(ValuesJson(table.values));
    row_tables.push_back(std::move(entry));
  }
  Json spec = Json::array();
  const auto value = [](const std::string& text) {
    return text.empty() ? Json() : Json::parse(text, nullptr, false);
  };
  for (const auto& one : report.spec) {
    spec.push_back(
        {{"path", one.path}, {"before", value(one.before)}, {"after", value(one.after)}});
  }
  const auto side = [](const checkpoint::Manifest& manifest) {
    return Json{{"job", manifest.job_name},
                {"round", manifest.round.value()},
                {"step", manifest.step},
                {"samples", manifest.samples}};
  };
  return {{"before", side(report.before)},       {"after", side(report.after)},
          {"different", report.different()},     {"tables", std::move(tables)},
          {"row_tables", std::move(row_tables)}, {"spec", std::move(spec)}};
}

std::string Counted(std::uint64_t count) { return CountText(static_cast<std::int64_t>(count)); }

// "1,024 of 4,096"
std::string PartText(std::uint64_t part, std::uint64_t whole) {
  return Counted(part) + " of " + Counted(whole);
}

// JOB A B with A and B rounds, or two directories.
Result<ExitCode> Diff(Globals& globals, const DiffOptions& options,
                      const std::vector<std::string>& directories) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  checkpoint::DiffSide sides[2];
  if (directories.size() == 2) {
    sides[0] = {directories[0], ""};
    sides[1] = {directories[1], ""};
  } else {
    if (options.job.empty() || options.before.empty() || options.after.empty()) {
      return Error{ErrorId::kCommandLine,
                   "name a job and two of its checkpoints, or give --dirs A B"};
    }
    const std::string rounds[2] = {options.before, options.after};
    for (int i = 0; i < 2; ++i) {
      const Located located = PS_TRY(LocateRound(globals, options.job, rounds[i], options.root));
      sides[i] = {located.directory, located.hash};
    }
  }
  auto compared = checkpoint::DiffCheckpoints(sides[0], sides[1], ShowShards(environment));
  EndShards(environment);
  const checkpoint::DiffReport report = PS_TRY(std::move(compared));
  std::ostream& out = environment.out;
  if (WriteStructured(out, format, DiffJson(report))) return ExitCode::kOk;
  out << FieldsText(
      {{"step", Counted(report.before.step) + " -> " + Counted(report.after.step)},
       {"samples", Counted(report.before.samples) + " -> " + Counted(report.after.samples)}});
  const auto norms = [](std::vector<std::string> row, const checkpoint::ValuesDiff& values) {
    row.push_back(DecimalText(values.before_norm));
    row.push_back(DecimalText(values.difference_norm));
    row.push_back(DecimalText(values.largest));
    row.push_back(Counted(values.nonfinite));
    return row;
  };
  if (!report.tables.empty()) {
    Table table({"TABLE", "BLOCKS CHANGED", "ELEMENTS CHANGED", "NORM", "NORM OF DIFFERENCE",
                 "LARGEST", "NOT FINITE"});
    for (const auto& one : report.tables) {
      table.Add(norms({Printable(one.name), PartText(one.blocks_changed, one.blocks),
                       PartText(one.elements_changed, one.elements)},
                      one.values));
    }
    out << "\n" << table.ToString();
  }
  if (!report.row_tables.empty()) {
    Table table({"TABLE OF ROWS", "ROWS", "ADDED", "REMOVED", "CHANGED", "NORM",
                 "NORM OF DIFFERENCE", "LARGEST", "NOT FINITE"});
    for (const auto& one : report.row_tables) {
      table.Add(
          norms({Printable(one.name), Counted(one.rows_before) + " -> " + Counted(one.rows_after),
                 Counted(one.rows_added), Counted(one.rows_removed), Counted(one.rows_changed)},
                one.values));
    }
    out << "\n" << table.ToString();
  }
  if (!report.spec.empty()) {
    Table table({"KEY OF THE JOB", "BEFORE", "AFTER"});
    for (const auto& one : report.spec) {
      table.Add({Printable(one.path), one.before.empty() ? "-" : Printable(one.before),
                 one.after.empty() ? "-" : Printable(one.after)});
    }
    out << "\n" << table.ToString();
  }
  return ExitCode::kOk;
}

void AddRetentionCommands(CLI::App& group, Globals& globals) {
  const auto add = [&](const char* name, const char* description, const char* examples) {
    CLI::App* command = AddCommand(group, name, description, examples, globals);
    const auto options = std::make_shared<RoundOptions>();
    command->add_option("job", options->job, "Number or name (then the newest)")->required();
    command->add_option("round", options->round, "The checkpoint's number")->required();
    return std::pair(command, options);
  };
  const auto [pin, pin_options] =
      add("pin", "Keep a checkpoint until it is unpinned", "  ds-cli ckpt pin fashion-mlp 3\n");
  pin->callback([&globals, options = pin_options] {
    globals.action = [&globals, options] { return SetPin(globals, *options, true); };
  });
  const auto [unpin, unpin_options] = add("unpin", "Keep a checkpoint no longer than others",
                                          "  ds-cli ckpt unpin fashion-mlp 3\n");
  unpin->callback([&globals, options = unpin_options] {
    globals.action = [&globals, options] { return SetPin(globals, *options, false); };
  });
  CLI::App* prune = AddCommand(
      group, "prune",
      "Delete the checkpoints of a job but the newest, every keep_every-th and the pinned",
      "  ds-cli ckpt prune fashion-mlp --keep 1 --dry-run\n  ds-cli ckpt prune 7 --all\n", globals);
  const auto prune_options = std::make_shared<PruneOptions>();
  prune->add_option("job", prune_options->job, "Number or name (then the newest)")->required();
  auto* keep =
      prune
          ->add_option("--keep", prune_options->keep,
                       "How many of the newest stay; else as the job's checkpoint.keep says")
          ->check(CLI::Range(1, 1000));
  prune
      ->add_flag("--all", prune_options->all,
                 "None stay but the pinned and those that other jobs start from; of a job that is "
                 "over, or was imported")
      ->excludes(keep);
  prune->add_flag("--dry-run", prune_options->dry_run, "Only show what would go");
  prune->callback([&globals, options = prune_options] {
    globals.action = [&globals, options] { return Prune(globals, *options); };
  });
  const auto [rollback, rollback_options] =
      add("rollback",
          "Take a running job back to a checkpoint; later ones are discarded, what came after is "
          "trained again",
          "  ds-cli ckpt rollback fashion-mlp 3          # says what it would cost\n"
          "  ds-cli ckpt rollback fashion-mlp 3 --yes\n");
  rollback->add_flag("--yes", rollback_options->yes, "Do it");
  rollback->callback([&globals, options = rollback_options] {
    globals.action = [&globals, options] { return RollBack(globals, *options); };
  });
}

void AddDiffCommand(CLI::App& group, Globals& globals) {
  CLI::App* diff = AddCommand(
      group, "diff", "Show what differs between two checkpoints, table by table",
      "  ds-cli ckpt diff fashion-mlp 3 7\n  ds-cli ckpt diff --dirs DIR DIR -o json\n", globals);
  const auto options = std::make_shared<DiffOptions>();
  const auto directories = std::make_shared<std::vector<std::string>>();
  auto* job = diff->add_option("job", options->job, "Number or name (then the newest)");
  auto* before = diff->add_option("before", options->before, "Number of the one checkpoint");
  auto* after = diff->add_option("after", options->after, "Number of the other");
  diff->add_option("--dirs", *directories, "The checkpoints' directories; needs no coordinator")
      ->expected(2)
      ->excludes(job)
      ->excludes(before)
      ->excludes(after)
      ->type_name("DIR DIR");
  diff->add_option("--checkpoint-dir", options->root, "Where the servers store checkpoints")
      ->type_name("DIR");
  diff->callback([&globals, options, directories] {
    globals.action = [&globals, options, directories] {
      return Diff(globals, *options, *directories);
    };
  });
}

struct FetchOptions {
  std::string name;  // JOB or JOB@ROUND
  std::string root;
  std::string rate;
};

Result<ExitCode> Fetch(Globals& globals, const FetchOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  FetchLimits limits;
  if (!options.rate.empty()) limits.bytes_per_second = PS_TRY(ParseRate(options.rate));
  Api api = PS_TRY(globals.OpenApi());
  const auto [job, round] = SplitRound(options.name);
  const Json found = PS_TRY(FindRound(api, job, round));
  const auto report =
      PS_TRY(FetchRound(globals.environment, api, OrderOf(found, options.root), limits));
  const std::string directory = (fs::path(options.root) / TextOf(found, "directory")).string();
  const Json json{{"directory", directory},
                  {"job", report.manifest.job_name},
                  {"round", report.manifest.round.value()},
                  {"parts", report.parts},
                  {"bytes", report.bytes}};
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << directory << "\n";
    return ExitCode::kOk;
  }
  out << Printable(report.manifest.job_name) << "@" << report.manifest.round.value() << ": "
      << BytesText(static_cast<double>(report.bytes)) << " fetched to " << directory
      << "\nUse it as: ds-cli ckpt verify --dir '" << directory << "'\n";
  return ExitCode::kOk;
}

void AddFetchCommand(CLI::App& group, Globals& globals) {
  CLI::App* fetch = AddCommand(
      group, "fetch", "Copy a checkpoint, with all that it builds on, from the servers to a folder",
      "  ds-cli ckpt fetch fashion-mlp --to /srv/copies\n"
      "  ds-cli ckpt fetch fashion-mlp@3 --to /srv/copies --rate 50M\n",
      globals);
  const auto options = std::make_shared<FetchOptions>();
  fetch->add_option("checkpoint", options->name, "JOB (its newest checkpoint) or JOB@ROUND")
      ->required();
  fetch
      ->add_option(
          "--to", options->root,
          "The folder, in which it gets the path that it has on the servers; what is there "
          "already is not fetched again")
      ->required()
      ->type_name("FOLDER");
  fetch->add_option("--rate", options->rate, "At most so many bytes a second, as in 50M")
      ->type_name("RATE");
  fetch->callback([&globals, options] {
    globals.action = [&globals, options] { return Fetch(globals, *options); };
  });
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
  CLI::App* list = AddCommand(*group, "list", "List the checkpoints of a job, or backups",
                              "  ds-cli ckpt list fashion-mlp\n  ds-cli ckpt list 7 -o wide\n"
                              "  ds-cli ckpt list --backup /srv/backup\n",
                              globals);
  const auto job = std::make_shared<std::string>();
  const auto backups = std::make_shared<std::string>();
  list->add_option("job", *job, "Number or name (then the newest)");
  list->add_option(
          "--backup", *backups,
          "List what this folder of `ckpt backup` holds, without a coordinator; of the job "
          "alone if one is named")
      ->type_name("FOLDER");
  list->callback([&globals, job, backups] {
    globals.action = [&globals, job, backups]() -> Result<ExitCode> {
      if (!backups->empty()) return ListBackups(globals, *backups, *job);
      if (!job->empty()) return List(globals, *job);
      return Error{ErrorId::kCommandLine, "name a job, or give --backup FOLDER"};
    };
  });
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
  AddFetchCommand(*group, globals);
  AddBackupCommands(*group, globals);
  AddImportCommand(*group, globals);
  AddDiffCommand(*group, globals);
  AddRetentionCommands(*group, globals);
}

}  // namespace ps::cli
