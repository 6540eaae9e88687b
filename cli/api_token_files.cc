#include "cli/api_token_files.h"

#include <algorithm>
#include <utility>

#include "cli/whole_file.h"
#include "common/error_id.h"

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
  if (fs::exists(path, ignored)) list.tokens = PS_TRY(net::ApiTokens::ReadFile(path.string()));
  list.text = PS_TRY(ReadOrBegin(path,
                                 "# Who may use the REST API: the same list on every coordinator.\n"
                                 "# ROLE NAME SHA-256-OF-TOKEN [until YYYY-MM-DD]\n"));
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
    return Error{ErrorId::kNameTaken, path.string() + ": has a token of " + token.name +
                                          " already; `ds-cli token revoke " + token.name +
                                          "` takes it away"};
  }
  const std::string secret = PS_TRY(net::MakeApiToken());
  token.hash = net::ApiTokenHash(secret);
  list.text += net::ApiTokenLine(token);
  // What cannot be read again is not written.
  PS_TRY(net::ApiTokens::Parse(list.text));
  PS_TRY(WriteSecretAndList(token_file, secret + "\n", path, list.text));
  return token;
}

Result<net::ApiToken> RevokeApiToken(const std::string& name, const fs::path& path) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(path));
  const List list = PS_TRY(ReadList(path));
  const net::ApiToken* const gone = Named(list, name);
  if (gone == nullptr) {
    return Error{ErrorId::kNameUnknown, path.string() + ": nobody of the name " + name +
                                            " has a token (`ds-cli token list`)"};
  }
  PS_TRY(WriteWhole(path, WithoutEntries(list.text, {gone->hash}), 0644, /*fresh=*/false));
  return *gone;
}

}  // namespace ps::cli
