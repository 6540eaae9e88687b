// Which coordinators a command speaks to, and where that was said.
//
// In this order: --coordinator, DS_COORDINATOR (separated by commas), the file
// that `local up` writes ($DS_STATE or ~/.local/state/ds/local.json). With DS_KEY the operator has
// keys (DS_TRUSTED: /etc/ds/trusted). For coordinators that want a token it is DS_TOKEN, or in the
// file DS_TOKEN_FILE; DS_CA is the file of who vouches for their certificates. Never a flag: `ps`
// shows the command line to everybody.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/environment.h"
#include "common/net/context.h"
#include "common/net/http_client.h"
#include "common/result.h"

namespace ps::cli {

struct Context {
  std::vector<std::string> coordinators;  // URLs
  std::string source;                     // "--coordinator", "DS_COORDINATOR" or the file
  std::string directory;                  // of the local cluster, from the file
  // The operator's keys, for servers that want one: DS_KEY and DS_TRUSTED, or the file's.
  net::SecurityOptions security{};
  std::string token_file{};  // DS_TOKEN_FILE, or the file's
  // What coordinators are shown, and what they must show; the token only by FindContext().
  net::HttpAccess access{};
};

std::filesystem::path ContextPath(const Environment& environment);

// kNotFound if there is no file, kInvalid if it makes no sense.
Result<Context> ReadContextFile(const Environment& environment);
// Replaces the file at once, by a rename.
Status WriteContextFile(const Environment& environment, const Context& context);
Status RemoveContextFile(const Environment& environment);

// kUnreachable, with all places that were looked at, if no coordinator is known; as
// ReadApiTokenFile().
Result<Context> FindContext(const Environment& environment, const std::vector<std::string>& flags);

}  // namespace ps::cli
