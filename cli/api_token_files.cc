#include "cli/api_token_files.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "cli/whole_file.h"
#include "common/net/list_file.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

// As it is, and what it says; nothing if there is no list yet.
struct List {
  std::string text;
  net::ApiTokens tokens;
};
Result<List> ReadList(const fs::path& path) {
  List list;
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    list.text =
        "# Who may use the REST API: the same list on every coordinator.\n"
        "# ROLE NAME SHA-256-OF-TOKEN [until YYYY-MM-DD]\n";
    return list;
  }
  list.tokens = PS_TRY(net::ApiTokens::ReadFile(path.string()));
  list.text = PS_TRY(net::ReadListFile(path.string()));
  if (!list.text.empty() && list.text.back() != '\n') list.text += '\n';
  return list;
}

const net::ApiToken* Named(const List& list, const std::string& name) {
  const auto& tokens = list.tokens.tokens();
  const auto at = std::find_if(tokens.begin(), tokens.end(),
                               [&name](const net::ApiToken& token) { return token.name == name; });
  return at == tokens.end() ? nullptr : &*at;
}

}  // namespace

Result<net::ApiToken> CreateApiToken(net::ApiToken token, const fs::path& token_file,
                                     const fs::path& path) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(path));
  List list = PS_TRY(ReadList(path));
  if (Named(list, token.name) != nullptr) {
    return Error{ErrorCode::kConflict, path.string() + ": has a token of " + token.name +
                                           " already; `ds-cli token revoke " + token.name +
                                           "` takes it away"};
  }
  const std::string secret = PS_TRY(net::MakeApiToken());
  token.hash = net::ApiTokenHash(secret);
  list.text += net::ApiTokenLine(token);
  // What cannot be read again is not written.
  PS_TRY(net::ApiTokens::Parse(list.text));
  PS_TRY(WriteWhole(token_file, secret + "\n", 0600, /*fresh=*/true));
  const Status added = WriteWhole(path, list.text, 0644, /*fresh=*/false);
  if (!added.ok()) {
    std::error_code ignored;
    fs::remove(token_file, ignored);
    return added.error();
  }
  return token;
}

Result<net::ApiToken> RevokeApiToken(const std::string& name, const fs::path& path) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(path));
  const List list = PS_TRY(ReadList(path));
  const net::ApiToken* const gone = Named(list, name);
  if (gone == nullptr) {
    return Error{ErrorCode::kNotFound, path.string() + ": nobody of the name " + name +
                                           " has a token (`ds-cli token list`)"};
  }
  std::string kept;
  std::istringstream lines(list.text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.front() == '#' || line.find(gone->hash) == std::string::npos) {
      kept += line + "\n";
    }
  }
  PS_TRY(WriteWhole(path, kept, 0644, /*fresh=*/false));
  return *gone;
}

}  // namespace ps::cli
