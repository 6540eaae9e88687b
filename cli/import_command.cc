// ds-cli ckpt import: gives the files of a backup to the servers while they fetch them.
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "checkpoint/backup_folder.h"
#include "checkpoint/files.h"
#include "checkpoint/remote/file_service.h"
#include "checkpoint/verify.h"
#include "cli/commands.h"
#include "cli/job_wait.h"
#include "common/error_id.h"
#include "common/net/context.h"
#include "common/net/http_client.h"
#include "common/net/zmq_socket.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

struct ImportOptions {
  std::string directory;
  std::string name;
  std::string bind;
};

// The address of this machine from which the coordinator is reached: servers reach it there, too.
Result<std::string> AddressTowards(const std::string& url) {
  const net::HttpUrl place = PS_TRY(net::ParseHttpUrl(url));
  const Error unknown{ErrorId::kImportAddress,
                      "it is not known by which address the servers reach this machine; give it "
                      "with --bind"};
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(place.host.c_str(), place.port.c_str(), &hints, &found) != 0) return unknown;
  std::string address;
  for (const addrinfo* one = found; one != nullptr && address.empty(); one = one->ai_next) {
    // Nothing is sent: the kernel only chooses the way.
    const checkpoint::FileDescriptor socket(
        ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, 0));
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    char text[NI_MAXHOST];
    if (socket.get() >= 0 && ::connect(socket.get(), one->ai_addr, one->ai_addrlen) == 0 &&
        ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof(text), nullptr, 0,
                      NI_NUMERICHOST) == 0) {
      address = text;
    }
  }
  ::freeaddrinfo(found);
  if (address.empty()) return unknown;
  return address;
}

bool IsRoundDirectory(const fs::path& path) {
  return path.filename().string().rfind("ckpt-", 0) == 0;
}
bool IsJobDirectory(const fs::path& path) { return path.filename().string().rfind("job-", 0) == 0; }

// A checkpoint's own directory, or the newest backup of the only job in a folder.
Result<fs::path> FindCheckpoint(const std::string& text) {
  std::error_code error;
  fs::path path = fs::canonical(text, error);
  if (error) {
    return Error{error == std::errc::no_such_file_or_directory ? ErrorId::kBackupMissing
                                                               : ErrorId::kFileUnreadable,
                 text + ": " + error.message()};
  }
  if (IsRoundDirectory(path)) {
    if (IsJobDirectory(path.parent_path())) return path;
    return Error{ErrorId::kImportFolder,
                 path.string() +
                     ": a checkpoint that is imported lies in a folder job-..., as `ckpt backup` "
                     "and `ckpt fetch` make it"};
  }
  const bool one_job = IsJobDirectory(path);
  const fs::path folder = one_job ? path.parent_path() : path;
  std::vector<checkpoint::Backup> backups = PS_TRY(checkpoint::ListBackups(folder));
  std::erase_if(backups, [&](const checkpoint::Backup& one) {
    return !one.damage.empty() ||
           (one_job && one.directory.parent_path().filename() != path.filename());
  });
  if (backups.empty()) {
    return Error{ErrorId::kBackupMissing, path.string() + ": there is no whole backup in it"};
  }
  std::set<fs::path> jobs;
  for (const checkpoint::Backup& one : backups) jobs.insert(one.directory.parent_path());
  if (jobs.size() == 1) return folder / backups.back().directory;  // by round
  std::string names;
  for (const fs::path& job : jobs) names += "\n  " + (folder / job).string();
  return Error{ErrorId::kImportFolder,
               path.string() + " has backups of several jobs; name one of them:" + names};
}

Status VerifyAll(Environment& environment, const fs::path& directory, std::string& hash) {
  const auto show = [&](std::uint32_t done, std::uint32_t total) {
    if (!environment.err_is_terminal) return;
    environment.err << "\rverified shard " << done << " of " << total << std::flush;
  };
  const auto report = checkpoint::VerifyCheckpoint(directory, show);
  if (environment.err_is_terminal) environment.err << "\r\x1b[K" << std::flush;
  if (!report.ok()) return report.error();
  hash = report->manifest_hash;
  if (report->findings.empty()) return Ok();
  std::string text = directory.string() + " is damaged, nothing was imported:";
  for (const std::string& finding : report->findings) text += "\n  " + finding;
  return Error{ErrorId::kCheckpointDamaged, text};
}

Result<ExitCode> Import(Globals& globals, const ImportOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const fs::path directory = PS_TRY(FindCheckpoint(options.directory));
  std::string hash;
  PS_TRY(VerifyAll(environment, directory, hash));
  const std::string manifest = PS_TRY(checkpoint::FindManifest(directory, hash));
  std::string address = options.bind;
  if (address.empty()) address = PS_TRY(AddressTowards(api.context().coordinators.front()));
  net::Context context;
  PS_TRY(context.Secure(api.context().security));
  const bool ipv6 = address.find(':') != std::string::npos;
  const auto service = PS_TRY(
      checkpoint::FileService::Start(context, directory.parent_path().parent_path(),
                                     "tcp://" + (ipv6 ? "[" + address + "]" : address) + ":*"));
  Json body{{"endpoint", net::EndpointWithHost(service->endpoint(), address)},
            {"directory", (directory.parent_path().filename() / directory.filename()).string()},
            {"manifest", manifest}};
  if (!options.name.empty()) body["name"] = options.name;
  const Json made = MemberOf(PS_TRY(api.Post("/v1/imports", body)), "job");
  const std::string id = TextOf(made, "id");
  const Json job = PS_TRY(WaitForJob(api, environment, id, {std::nullopt, /*quiet=*/true}));
  if (TextOf(job, "phase") != "imported") {
    return Error{TextOf(job, "phase") == "cancelled" ? ErrorId::kClosed : ErrorId::kImportFailed,
                 "nothing was imported, job " + id + " " + TextOf(job, "phase") + ": " +
                     TextOf(job, "reason")};
  }
  const Json last = MemberOf(job, "last_checkpoint");
  const std::string name = TextOf(job, "name") + "@" + TextOf(last, "round");
  const Json json{{"job", IntegerOf(job, "id")},
                  {"name", TextOf(job, "name")},
                  {"round", IntegerOf(last, "round")},
                  {"step", IntegerOf(last, "step")},
                  {"bytes", IntegerOf(last, "bytes")},
                  {"copies", IntegerOf(last, "copies")},
                  {"manifest_hash", TextOf(last, "manifest_hash")},
                  {"directory", TextOf(last, "directory")}};
  if (WriteStructured(environment.out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    environment.out << Printable(name) << "\n";
    return ExitCode::kOk;
  }
  environment.out << Printable(name) << " is imported, as job " << id << ", at step "
                  << CountText(NumberOf(last, "step"))
                  << "\nStart from it with: checkpoint: {from: " << Printable(name)
                  << "}\nDelete it with: ds-cli ckpt prune " << id << " --all\n";
  return ExitCode::kOk;
}

}  // namespace

void AddImportCommand(CLI::App& ckpt_group, Globals& globals) {
  CLI::App* command = AddCommand(
      ckpt_group, "import",
      "Bring a checkpoint from a backup, or of another cluster, to the servers of this one",
      "  ds-cli ckpt import /srv/backup/job-7-fashion-mlp-20261122T215000123Z/ckpt-12\n"
      "  ds-cli ckpt import /srv/backup --name fashion-before\n",
      globals);
  const auto options = std::make_shared<ImportOptions>();
  command
      ->add_option("directory", options->directory,
                   "A checkpoint's directory, or a folder of backups of one job (its newest)")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--name", options->name,
                   "Of the job that it becomes here; else that of the job it is of")
      ->type_name("NAME");
  command
      ->add_option("--bind", options->bind,
                   "This machine's address for the servers, which fetch from it; else that towards "
                   "the coordinator")
      ->type_name("ADDRESS");
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Import(globals, *options); };
  });
}

}  // namespace ps::cli
