// ds-cli ckpt backup, and lists of backups.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "checkpoint/backup_folder.h"
#include "checkpoint/files.h"
#include "cli/backup_list.h"
#include "cli/checkpoint_files.h"
#include "cli/commands.h"
#include "common/error_id.h"
#include "common/net/loop.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kDayMs = std::uint64_t{24} * 3600 * 1000;
constexpr const char* kPinnedFile = "PINNED";
// A checkpoint that retention removes before it is pinned: the next newest is taken.
constexpr int kPinAttempts = 5;

struct BackupOptions {
  std::string name;  // JOB or JOB@ROUND
  std::string folder;
  std::string rate;
  std::uint64_t keep_days = 7;
  std::uint64_t keep_min = 2;
};

// The checkpoint that is copied stays on the servers meanwhile. That we have pinned it is noted in
// the backup folder first: a backup that was killed is made good by the next one.
class Pin {
 public:
  Pin(Api& api, std::string job, fs::path note)
      : api_(api), job_(std::move(job)), note_(std::move(note)) {}

  // What an earlier backup has left.
  Status Clear() {
    const auto text = checkpoint::ReadWholeFile(note_, 64);
    if (!text.ok()) {
      return text.error().code == ErrorCode::kNotFound ? Ok() : Status(text.error());
    }
    const bool number =
        !text->empty() && text->find_first_not_of("0123456789") == std::string::npos;
    if (number) PS_TRY(Set(*text, false));
    std::error_code error;
    fs::remove(note_, error);
    return Ok();
  }

  // kNotFound if retention was quicker.
  Status Take(const Json& found) {
    if (FlagOf(found, "pinned")) return Ok();  // by an operator
    const std::string round = TextOf(found, "round");
    PS_TRY(checkpoint::WriteFileDurably(note_, round));
    return Status(Posted(round, true));
  }

 private:
  Status Set(const std::string& round, bool pinned) {
    Status done = Posted(round, pinned);
    // Nothing to unpin, when it or the job is gone.
    if (!pinned && !done.ok() && done.error().code == ErrorCode::kNotFound) return Ok();
    return done;
  }
  Status Posted(const std::string& round, bool pinned) {
    PS_TRY(api_.Post("/v1/jobs/" + UrlEncode(job_) + "/checkpoints/" + UrlEncode(round) +
                         (pinned ? "/pin" : "/unpin"),
                     Json::object()));
    return Ok();
  }

  Api& api_;
  const std::string job_;
  const fs::path note_;
};

// The newest that is not damaged, or the one with the number.
Result<Json> ChooseRound(Api& api, const std::string& job, const std::string& round) {
  if (!round.empty()) return FindRound(api, job, round);
  const Json checkpoints = PS_TRY(ListCheckpoints(api, job));
  const Json* newest = nullptr;
  for (const Json& one : checkpoints) {
    if (FlagOf(one, "damaged")) continue;
    if (newest == nullptr || IntegerOf(one, "round") > IntegerOf(*newest, "round")) newest = &one;
  }
  if (newest != nullptr) return *newest;
  return Error{ErrorId::kNoCheckpoint, "job " + job + " has no checkpoint that could be backed up"};
}

struct BackedUp {
  checkpoint::FetchReport fetched;
  fs::path directory;  // below the folder
};

Result<BackedUp> CopyToFolder(Globals& globals, Api& api, const BackupOptions& options,
                              const FetchLimits& limits, fs::path& job_folder) {
  const auto [name, round] = SplitRound(options.name);
  // From here on by its number: a new job may get the name meanwhile.
  const Json job = PS_TRY(GetJob(api, name));
  const std::string id = TextOf(job, "id");
  const fs::path folder = options.folder;
  job_folder = checkpoint::BackupJobFolder(id, TextOf(job, "name"), TextOf(job, "created"));
  Json found = PS_TRY(ChooseRound(api, id, round));
  PS_TRY(checkpoint::CreateDirectories(folder / job_folder));
  Pin pin(api, id, folder / job_folder / kPinnedFile);
  PS_TRY(pin.Clear());
  for (int attempt = 1;; ++attempt) {
    const Status pinned = pin.Take(found);
    if (pinned.ok()) break;
    const bool gone = pinned.error().code == ErrorCode::kNotFound;
    if (!gone || !round.empty() || attempt == kPinAttempts) return pinned.error();
    found = PS_TRY(ChooseRound(api, id, round));
  }
  BackedUp done;
  done.directory = job_folder / ("ckpt-" + TextOf(found, "round"));
  const checkpoint::FetchOrder order{TextOf(found, "directory"), TextOf(found, "manifest_hash"),
                                     folder / done.directory, /*check_present=*/true};
  auto fetched = FetchRound(globals.environment, api, order, limits);
  const Status cleared = pin.Clear();
  done.fetched = PS_TRY(std::move(fetched));
  if (!cleared.ok()) {
    globals.environment.err << "ds-cli: the checkpoint stays pinned until the next backup: "
                            << cleared.error().message << "\n";
  }
  return done;
}

Result<ExitCode> Backup(Globals& globals, const BackupOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  FetchLimits limits;
  if (!options.rate.empty()) limits.bytes_per_second = PS_TRY(ParseRate(options.rate));
  Api api = PS_TRY(globals.OpenApi());
  const auto lock = PS_TRY(checkpoint::LockBackups(options.folder));
  fs::path job_folder;
  const BackedUp done = PS_TRY(CopyToFolder(globals, api, options, limits, job_folder));
  const checkpoint::BackupRule rule{options.keep_days * kDayMs,
                                    static_cast<std::size_t>(options.keep_min)};
  const auto swept = PS_TRY(checkpoint::SweepBackups(
      options.folder, job_folder, rule, static_cast<std::uint64_t>(net::WallClockMs())));
  PS_TRY(checkpoint::WriteCatalogue(options.folder));
  if (swept.held_up) {
    globals.environment.err
        << "ds-cli: nothing was deleted of older backups but their names: what one with a damaged "
           "manifest needs is not known (`ds-cli ckpt list --backup`)\n";
  }
  const std::string directory = (fs::path(options.folder) / done.directory).string();
  const checkpoint::FetchReport& fetched = done.fetched;
  Json removed = Json::array();
  for (const fs::path& one : swept.removed) removed.push_back(one.string());
  const Json json{{"directory", directory},
                  {"job", fetched.manifest.job_name},
                  {"round", fetched.manifest.round.value()},
                  {"manifest_hash", fetched.manifest_hash},
                  {"parts", fetched.parts},
                  {"parts_present", fetched.present},
                  {"parts_repaired", fetched.repaired},
                  {"bytes", fetched.bytes},
                  {"removed", removed}};
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << directory << "\n";
    return ExitCode::kOk;
  }
  out << Printable(fetched.manifest.job_name) << "@" << fetched.manifest.round.value() << " is in "
      << directory << ": " << BytesText(static_cast<double>(fetched.bytes)) << " copied, "
      << fetched.present << " of " << fetched.parts << " parts were there";
  if (fetched.repaired > 0) out << ", " << fetched.repaired << " of them damaged and replaced";
  out << "\n";
  for (const fs::path& one : swept.removed) out << "removed: " << one.string() << "\n";
  return ExitCode::kOk;
}

}  // namespace

Result<ExitCode> ListBackups(Globals& globals, const std::string& folder, const std::string& job) {
  const OutputFormat format = PS_TRY(globals.Format());
  std::vector<checkpoint::Backup> backups = PS_TRY(checkpoint::ListBackups(folder));
  std::erase_if(backups, [&](const checkpoint::Backup& one) {
    return !job.empty() && job != one.job_name && job != std::to_string(one.job.value());
  });
  std::ostream& out = globals.environment.out;
  Json list = Json::array();
  for (const auto& backup : backups) {
    list.push_back(checkpoint::ToJson(backup));
    list.back()["time"] = TimeText(backup.time_ms);
  }
  if (WriteStructured(out, format, Json{{"backups", list}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const auto& backup : backups) {
      out << Printable((fs::path(folder) / backup.directory).string()) << "\n";
    }
    return ExitCode::kOk;
  }
  std::vector<std::string> header = {"JOB", "ROUND", "TIME", "STEP", "SIZE", "FINAL"};
  const bool wide = format == OutputFormat::kWide;
  if (wide) header.insert(header.end(), {"SAMPLES", "STATE", "BUILDS ON", "SHARDS", "MANIFEST"});
  header.insert(header.end(), {"WHOLE", "DIRECTORY"});
  Table table(header);
  for (std::size_t i = 0; i < backups.size(); ++i) {
    const checkpoint::Backup& one = backups[i];
    const Json& json = list[i];
    std::vector<std::string> row = {Printable(one.job_name),
                                    TextOf(json, "round"),
                                    TextOf(json, "time"),
                                    CountText(NumberOf(json, "step")),
                                    BytesText(NumberOf(json, "bytes")),
                                    one.final_round ? "yes" : "no"};
    if (wide) {
      std::string bases;
      for (const Json& base : json["bases"]) bases += (bases.empty() ? "" : ",") + base.dump();
      row.push_back(CountText(NumberOf(json, "samples")));
      row.push_back(BytesText(NumberOf(json, "state_bytes")));
      row.push_back(bases.empty() ? "-" : bases);
      row.push_back(TextOf(json, "shards"));
      row.push_back(one.manifest_hash);
    }
    row.emplace_back(one.damage.empty() ? "yes" : "no");
    row.push_back(Printable(one.directory.string()));
    table.Add(row);
  }
  out << table.ToString();
  for (const auto& backup : backups) {
    if (!backup.damage.empty()) {
      globals.environment.err << "ds-cli: " << Printable(backup.directory.string()) << ": "
                              << Printable(backup.damage) << "\n";
    }
  }
  return ExitCode::kOk;
}

void AddBackupCommands(CLI::App& ckpt_group, Globals& globals) {
  CLI::App* backup = AddCommand(
      ckpt_group, "backup",
      "Copy a job's newest checkpoint to a folder of backups, and let old backups there go",
      "  ds-cli ckpt backup fashion-mlp --to /srv/backup\n"
      "  ds-cli ckpt backup 7@12 --to /srv/backup --rate 50M --keep-days 30 --keep-min 3\n"
      "  ds-cli ckpt list --backup /srv/backup\n",
      globals);
  const auto options = std::make_shared<BackupOptions>();
  backup
      ->add_option("checkpoint", options->name,
                   "JOB (its newest checkpoint that is not damaged) or JOB@ROUND")
      ->required();
  backup
      ->add_option("--to", options->folder,
                   "The folder; parts that are there already and good are not copied again")
      ->required()
      ->type_name("FOLDER");
  backup->add_option("--rate", options->rate, "At most so many bytes a second, as in 50M")
      ->type_name("RATE");
  backup
      ->add_option("--keep-days", options->keep_days,
                   "Backups of this job whose checkpoint is older go")
      ->capture_default_str()
      ->check(CLI::Range(0, 36'500));
  backup
      ->add_option("--keep-min", options->keep_min,
                   "But for so many of the newest, however old they are")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000));
  backup->callback([&globals, options] {
    globals.action = [&globals, options] { return Backup(globals, *options); };
  });
}

}  // namespace ps::cli
