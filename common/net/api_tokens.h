// Who may use the REST API: tokens, and the list of those that are known.
//
// A token is a secret of 256 random bits, in a file that nobody else can read:
//
//     dst_<43 letters, digits, - and _>
//
// All coordinators have the same list, a line for each token. It has only the tokens' SHA-256:
// who reads it cannot make a token of it, as what is random needs no slow hash.
//
//     # ROLE     NAME     SHA-256   [until DATE]
//     viewer     grafana  <64 hex digits>
//     submitter  anna     <64 hex digits>   until 2027-06-30
//
// What is not in the list, or not any more, or after its date (00:00 UTC), opens nothing. Pure, but
// for ReadFile() and ReadApiTokenFile(); any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace ps::net {

// Each may do what those before it may.
enum class ApiRole : std::uint8_t { kViewer, kSubmitter, kAdmin };
const char* ApiRoleName(ApiRole role);  // "viewer", "submitter", "admin"
std::optional<ApiRole> ApiRoleOf(std::string_view name);

// A new token, from the random numbers of the system.
Result<std::string> MakeApiToken();
// Whether it could be one.
bool IsApiToken(std::string_view text);
// Its SHA-256 as 64 hex digits.
std::string ApiTokenHash(std::string_view token);
// kIo if it cannot be read; kDenied if its group or others may read or write it; kInvalid if there
// is no token in it.
Result<std::string> ReadApiTokenFile(const std::string& path);

struct ApiToken {
  ApiRole role = ApiRole::kViewer;
  std::string name;  // for people: letters, digits and `-_.@:`
  std::string hash;
  std::optional<std::int64_t> until_ms;  // Unix time

  bool expired(std::int64_t now_ms) const { return until_ms && now_ms >= *until_ms; }
};

// A line of the list. kInvalid if it makes no sense.
Result<ApiToken> ParseApiTokenLine(const std::string& line);
// The same the other way, with its end.
std::string ApiTokenLine(const ApiToken& token);

class ApiTokens {
 public:
  // kInvalid, beginning with "line N: ", if a line makes no sense or a token or a name stands
  // twice.
  static Result<ApiTokens> Parse(std::string_view text);
  // kIo if it cannot be read; kDenied if everybody may write it; kInvalid names the file too.
  static Result<ApiTokens> ReadFile(const std::string& path);

  // Null: nobody has that token. It may have expired. How long it takes does not tell how much of
  // a guess was right.
  const ApiToken* Find(std::string_view token) const;
  const std::vector<ApiToken>& tokens() const { return tokens_; }

 private:
  std::vector<ApiToken> tokens_;
};

}  // namespace ps::net
