#include "cli/checkpoint_files.h"

#include <stdlib.h>

#include <charconv>
#include <set>
#include <system_error>
#include <vector>

#include "checkpoint/remote/remote_storage.h"
#include "common/error_id.h"
#include "common/net/context.h"
#include "common/net/zmq_socket.h"

namespace ps::cli {

namespace fs = std::filesystem;

Result<Json> ListCheckpoints(Api& api, const std::string& job) {
  const Json answer = PS_TRY(api.Get("/v1/jobs/" + UrlEncode(job) + "/checkpoints"));
  return MemberOf(answer, "checkpoints");
}

Result<Json> FindRound(Api& api, const std::string& job, const std::string& round) {
  const Json checkpoints = PS_TRY(ListCheckpoints(api, job));
  if (!checkpoints.is_array() || checkpoints.empty()) {
    return Error{ErrorId::kNoCheckpoint, "job " + job + " has no checkpoint yet"};
  }
  const Json* found = nullptr;
  for (const Json& checkpoint : checkpoints) {
    const bool newer =
        found == nullptr || IntegerOf(checkpoint, "round") > IntegerOf(*found, "round");
    if (round.empty() ? newer : TextOf(checkpoint, "round") == round) found = &checkpoint;
  }
  if (found == nullptr) {
    return Error{ErrorId::kCheckpointUnknown, "job " + job + " has no checkpoint " + round +
                                                  " (`ds-cli ckpt list " + job + "`)"};
  }
  return *found;
}

namespace {

// Removed with its last owner.
Result<std::shared_ptr<const fs::path>> TemporaryFolder(Environment& environment) {
  std::string parent = environment.variable("TMPDIR");
  if (parent.empty()) parent = "/tmp";
  std::string name = (fs::path(parent) / "ds-checkpoint-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    return Error{ErrorId::kFolderNotMade, "no temporary folder can be made in " + parent +
                                              "; name another place with TMPDIR"};
  }
  return std::shared_ptr<const fs::path>(new fs::path(name), [](const fs::path* path) {
    std::error_code error;
    fs::remove_all(*path, error);
    delete path;
  });
}

// The servers that give files, one for each folder of checkpoints.
Result<std::vector<std::string>> FileEndpoints(Api& api) {
  const Json nodes = PS_TRY(api.Get("/v1/nodes"));
  std::vector<std::string> endpoints;
  std::set<std::string> stores;
  for (const Json& node : MemberOf(nodes, "nodes")) {
    const std::string endpoint = TextOf(node, "files");
    if (TextOf(node, "kind") != "server" || endpoint.empty()) continue;
    if (stores.insert(TextOf(node, "store")).second) endpoints.push_back(endpoint);
  }
  return endpoints;
}

}  // namespace

std::pair<std::string, std::string> SplitRound(const std::string& name) {
  const auto at = name.find('@');
  return {name.substr(0, at), at == std::string::npos ? "" : name.substr(at + 1)};
}

Result<std::uint64_t> ParseRate(const std::string& text) {
  std::uint64_t rate = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, rate);
  std::uint64_t unit = 1;
  const std::string suffix(stop, end);
  if (suffix == "k") unit = 1'000;
  if (suffix == "M") unit = 1'000'000;
  if (suffix == "G") unit = 1'000'000'000;
  const bool known = suffix.empty() || unit > 1;
  if (error != std::errc() || !known || rate == 0 || rate > UINT64_MAX / unit / 1000) {
    return Error{ErrorId::kOptionValue,
                 "`" + text + "` is no rate; give bytes a second, as in 800k, 50M or 1G"};
  }
  return rate * unit;
}

checkpoint::FetchOrder OrderOf(const Json& checkpoint, const fs::path& root) {
  const std::string directory = TextOf(checkpoint, "directory");
  return {directory, TextOf(checkpoint, "manifest_hash"), root / directory, false};
}

Result<checkpoint::FetchReport> FetchRound(Environment& environment, Api& api,
                                           const checkpoint::FetchOrder& order,
                                           const FetchLimits& limits) {
  const std::vector<std::string> endpoints = PS_TRY(FileEndpoints(api));
  if (endpoints.empty()) {
    return Error{ErrorId::kNoFileServer,
                 "no ps-server that could give the checkpoint is registered"};
  }
  net::Context context;
  PS_TRY(context.Secure(api.context().security));
  std::vector<std::unique_ptr<checkpoint::RemoteStorage>> storages;
  std::vector<const checkpoint::Storage*> sources;
  for (const std::string& endpoint : endpoints) {
    storages.push_back(std::make_unique<checkpoint::RemoteStorage>(context, endpoint));
    sources.push_back(storages.back().get());
  }
  std::uint64_t bytes = 0;
  const std::int64_t begun_ms = environment.now_ms();
  std::int64_t shown_ms = begun_ms;
  const auto progress = [&](std::uint64_t piece, std::uint64_t total) {
    bytes += piece;
    if (limits.bytes_per_second > 0) {
      const auto due_ms = static_cast<std::int64_t>(bytes * 1000 / limits.bytes_per_second);
      const std::int64_t early_ms = begun_ms + due_ms - environment.now_ms();
      if (early_ms > 0) environment.sleep(std::chrono::milliseconds(early_ms));
    }
    if (environment.err_is_terminal && environment.now_ms() >= shown_ms + 200) {
      shown_ms = environment.now_ms();
      environment.err << "\r"
                      << (total == 0 ? "checks what is there"
                                     : "fetched " + BytesText(static_cast<double>(bytes)) + " of " +
                                           BytesText(static_cast<double>(total)))
                      << "\x1b[K" << std::flush;
    }
    return !environment.interrupted();
  };
  auto fetched = checkpoint::FetchCheckpoint(sources, order, progress);
  if (environment.err_is_terminal) environment.err << "\r\x1b[K" << std::flush;
  return fetched;
}

Result<Located> LocateRound(Globals& globals, const std::string& job, const std::string& round,
                            const std::string& root) {
  Api api = PS_TRY(globals.OpenApi());
  const Json found = PS_TRY(FindRound(api, job, round));
  const std::string hash = TextOf(found, "manifest_hash");
  // The cluster knows it relative to the servers' --checkpoint-dir.
  const fs::path directory = TextOf(found, "directory");
  const auto context = ReadContextFile(globals.environment);
  std::error_code error;
  if (!root.empty()) {
    if (fs::is_directory(root / directory, error)) return Located{root / directory, hash, nullptr};
    return Error{ErrorId::kCheckpointElsewhere,
                 (root / directory).string() +
                     " is not on this machine; leave out --checkpoint-dir and it is fetched from "
                     "the servers"};
  }
  if (context.ok() && !context->directory.empty()) {
    const fs::path local = fs::path(context->directory) / "checkpoints" / directory;
    if (fs::is_directory(local, error)) return Located{local, hash, nullptr};
  }
  const std::shared_ptr<const fs::path> folder = PS_TRY(TemporaryFolder(globals.environment));
  PS_TRY(FetchRound(globals.environment, api, OrderOf(found, *folder), {}));
  return Located{*folder / directory, hash, folder};
}

}  // namespace ps::cli
