#include "common/net/api_tokens.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <sstream>
#include <utility>

#include "common/error_id.h"
#include "common/net/list_file.h"
#include "common/secret_file.h"

namespace ps::net {
namespace {

constexpr std::string_view kPrefix = "dst_";  // by which scanners for lost secrets know it
constexpr std::size_t kSecretBytes = 32;
constexpr std::size_t kSecretChars = 43;
constexpr std::size_t kHashChars = 2 * SHA256_DIGEST_LENGTH;
constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
constexpr std::array<std::pair<ApiRole, const char*>, 3> kRoles = {{
    {ApiRole::kViewer, "viewer"},
    {ApiRole::kSubmitter, "submitter"},
    {ApiRole::kAdmin, "admin"},
}};

Error Wrong(std::string what) { return Error{ErrorId::kTokenList, std::move(what)}; }

// A word of a list in a message: it may be a secret that got there by mistake.
std::string Shown(const std::string& word) {
  return word.find(kPrefix) == std::string::npos ? "`" + word + "`" : "what stands there";
}

bool IsHash(std::string_view text) {
  return text.size() == kHashChars && text.find_first_not_of("0123456789abcdef") == text.npos;
}

}  // namespace

const char* ApiRoleName(ApiRole role) {
  for (const auto& [known, name] : kRoles) {
    if (known == role) return name;
  }
  return "nobody";
}

std::optional<ApiRole> ApiRoleOf(std::string_view name) {
  for (const auto& [role, known] : kRoles) {
    if (known == name) return role;
  }
  return std::nullopt;
}

Result<std::string> MakeApiToken() {
  std::array<unsigned char, kSecretBytes> secret{};
  if (RAND_bytes(secret.data(), static_cast<int>(secret.size())) != 1) {
    return Error{ErrorCode::kInternal, "OpenSSL gives no random numbers"};
  }
  std::string token(kPrefix);
  std::uint32_t bits = 0;
  int count = 0;
  for (const unsigned char byte : secret) {
    bits = (bits << 8 | byte) & 0xffffU;
    count += 8;
    while (count >= 6) {
      count -= 6;
      token += kAlphabet[bits >> count & 63U];
    }
  }
  token += kAlphabet[bits << (6 - count) & 63U];
  OPENSSL_cleanse(secret.data(), secret.size());
  return token;
}

bool IsApiToken(std::string_view text) {
  return text.size() == kPrefix.size() + kSecretChars &&
         text.substr(0, kPrefix.size()) == kPrefix &&
         text.find_first_not_of(kAlphabet, kPrefix.size()) == text.npos;
}

std::string ApiTokenHash(std::string_view token) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  std::string hash;
  for (const unsigned char byte : digest) {
    hash += "0123456789abcdef"[byte >> 4];
    hash += "0123456789abcdef"[byte & 15];
  }
  return hash;
}

Result<std::string> ReadApiTokenFile(const std::string& path) {
  PS_TRY(CheckSecretFile(path, SecretReaders::kOwner, "token",
                         "; `ds-cli token create` makes a token"));
  const auto lines = LinesOf(PS_TRY(ReadListFile(path)));
  // What stands there may be a secret all the same: it is not repeated.
  if (lines.size() != 1 || !IsApiToken(lines[0].second)) {
    return Error{ErrorId::kTokenFile,
                 path + ": is not a line with a token, as `ds-cli token create` writes it"};
  }
  return lines[0].second;
}

Result<ApiToken> ParseApiTokenLine(const std::string& line) {
  std::istringstream words(line);
  std::string role;
  ApiToken token;
  words >> role >> token.name >> token.hash;
  const auto known = ApiRoleOf(role);
  if (!known) return Wrong(Shown(role) + " is no role: viewer, submitter or admin");
  token.role = *known;
  if (!IsListName(token.name)) {
    return Wrong("a name of letters, digits and -_.@: must follow the role");
  }
  if (IsApiToken(token.hash)) {
    return Wrong("here stands the token of " + token.name +
                 " itself, in the place of its SHA-256: revoke it, others may have read it");
  }
  if (!IsHash(token.hash)) {
    return Wrong("the SHA-256 of the token of " + token.name + " must be 64 hex digits");
  }
  token.until_ms = PS_TRY(ReadUntil(words));
  return token;
}

std::string ApiTokenLine(const ApiToken& token) {
  std::string line = std::string(ApiRoleName(token.role)) + " " + token.name + " " + token.hash;
  if (token.until_ms) line += " until " + DateText(*token.until_ms);
  return line + "\n";
}

Result<ApiTokens> ApiTokens::Parse(std::string_view text) {
  ApiTokens list;
  std::set<std::string> names;
  std::set<std::string> hashes;
  for (const auto& [number, line] : LinesOf(text)) {
    const std::string where = "line " + std::to_string(number) + ": ";
    auto token = ParseApiTokenLine(line);
    if (!token.ok()) return Wrong(where + token.error().message);
    if (!names.insert(token->name).second) {
      return Wrong(where + token->name + " stands there twice");
    }
    if (!hashes.insert(token->hash).second) {
      return Wrong(where + "the token of " + token->name + " stands there twice");
    }
    list.tokens_.push_back(std::move(token).value());
  }
  return list;
}

Result<ApiTokens> ApiTokens::ReadFile(const std::string& path) {
  struct stat state {};
  if (::stat(path.c_str(), &state) == 0 && (state.st_mode & S_IWOTH) != 0) {
    return Error{ErrorId::kTokenListWritable,
                 path + ": everybody may write it, and so let himself in; `chmod o-w` it"};
  }
  const std::string text = PS_TRY(ReadListFile(path));
  auto list = Parse(text);
  if (!list.ok()) return Wrong(path + ": " + list.error().message);
  return list;
}

const ApiToken* ApiTokens::Find(std::string_view token) const {
  const std::string hash = ApiTokenHash(token);
  const ApiToken* found = nullptr;
  for (const ApiToken& known : tokens_) {
    if (CRYPTO_memcmp(known.hash.data(), hash.data(), kHashChars) == 0) found = &known;
  }
  return found;
}

}  // namespace ps::net
