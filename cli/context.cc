#include "cli/context.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

#include "cli/output.h"
#include "common/error_id.h"
#include "common/net/api_tokens.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kContextBytesMax = 1U << 20;

std::vector<std::string> SplitUrls(const std::string& text) {
  std::vector<std::string> urls;
  std::string url;
  std::istringstream stream(text);
  while (std::getline(stream, url, ',')) {
    if (!url.empty()) urls.push_back(url);
  }
  return urls;
}

}  // namespace

fs::path ContextPath(const Environment& environment) {
  if (const std::string path = environment.variable("DS_STATE"); !path.empty()) return path;
  if (const std::string state = environment.variable("XDG_STATE_HOME"); !state.empty()) {
    return fs::path(state) / "ds" / "local.json";
  }
  const std::string home = environment.variable("HOME");
  return fs::path(home.empty() ? "/" : home) / ".local" / "state" / "ds" / "local.json";
}

Result<Context> ReadContextFile(const Environment& environment) {
  const fs::path path = ContextPath(environment);
  std::error_code error;
  const auto size = fs::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream) return Error{ErrorCode::kNotFound, path.string() + " does not exist"};
  if (size > kContextBytesMax) return Error{ErrorId::kContextFile, path.string() + " is too large"};
  std::stringstream text;
  text << stream.rdbuf();
  const Json json = Json::parse(text.str(), nullptr, false);
  const Json& urls = MemberOf(json, "coordinators");
  if (!urls.is_array() || urls.empty()) {
    return Error{ErrorId::kContextFile, path.string() +
                                            " names no coordinators; `ds-cli local down` "
                                            "and `ds-cli local up` write it anew"};
  }
  Context context;
  for (const Json& url : urls) {
    if (url.is_string()) context.coordinators.push_back(url.get<std::string>());
  }
  context.source = path.string();
  context.directory = TextOf(json, "directory");
  context.security = {TextOf(json, "key"), TextOf(json, "trusted")};
  context.token_file = TextOf(json, "token_file");
  context.access.authorities = TextOf(json, "ca");
  return context;
}

Status WriteContextFile(const Environment& environment, const Context& context) {
  const fs::path path = ContextPath(environment);
  std::error_code error;
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), error);
  const fs::path temporary = path.string() + "." + std::to_string(::getpid()) + ".tmp";
  {
    std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
    stream << JsonText(Json{{"coordinators", context.coordinators},
                            {"directory", context.directory},
                            {"key", context.security.key},
                            {"trusted", context.security.trusted},
                            {"ca", context.access.authorities},
                            {"token_file", context.token_file}});
    stream.flush();
    if (!stream) return Error{ErrorId::kFileNotWritten, "cannot write " + temporary.string()};
  }
  fs::rename(temporary, path, error);
  if (error)
    return Error{ErrorId::kFileNotWritten,
                 "cannot write " + path.string() + ": " + error.message()};
  return Ok();
}

Status RemoveContextFile(const Environment& environment) {
  std::error_code error;
  fs::remove(ContextPath(environment), error);
  if (error) {
    return Error{ErrorId::kFileNotWritten,
                 "cannot remove " + ContextPath(environment).string() + ": " + error.message()};
  }
  return Ok();
}

namespace {

Result<Context> FindCoordinators(const Environment& environment,
                                 const std::vector<std::string>& flags) {
  Context context;
  for (const auto& flag : flags) {
    for (auto& url : SplitUrls(flag)) context.coordinators.push_back(std::move(url));
  }
  if (!context.coordinators.empty()) {
    context.source = "--coordinator";
    return context;
  }
  context.coordinators = SplitUrls(environment.variable("DS_COORDINATOR"));
  if (!context.coordinators.empty()) {
    context.source = "DS_COORDINATOR";
    return context;
  }
  auto file = ReadContextFile(environment);
  if (file.ok() || file.error().code == ErrorCode::kInvalid) return file;
  return Error{ErrorId::kNoCoordinatorKnown,
               "no coordinator is known: neither --coordinator nor DS_COORDINATOR is given, and " +
                   file.error().message};
}

}  // namespace

Result<Context> FindContext(const Environment& environment, const std::vector<std::string>& flags) {
  Context context = PS_TRY(FindCoordinators(environment, flags));
  if (const std::string key = environment.variable("DS_KEY"); !key.empty()) {
    const std::string trusted = environment.variable("DS_TRUSTED");
    context.security = {key, trusted.empty() ? "/etc/ds/trusted" : trusted};
  }
  if (const std::string ca = environment.variable("DS_CA"); !ca.empty()) {
    context.access.authorities = ca;
  }
  if (const std::string file = environment.variable("DS_TOKEN_FILE"); !file.empty()) {
    context.token_file = file;
  }
  if (const std::string token = environment.variable("DS_TOKEN"); !token.empty()) {
    // Not repeated: it may be a secret all the same.
    if (!net::IsApiToken(token)) {
      return Error{ErrorId::kTokenVariable,
                   "DS_TOKEN is no token as `ds-cli token create` makes it"};
    }
    context.access.token = token;
  } else if (!context.token_file.empty()) {
    context.access.token = PS_TRY(net::ReadApiTokenFile(context.token_file));
  }
  return context;
}

}  // namespace ps::cli
