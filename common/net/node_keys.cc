#include "common/net/node_keys.h"

#include <zmq.h>

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

constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kKeyChars = 40;
constexpr std::string_view kPublic = "public: ";
constexpr std::string_view kSecret = "secret: ";
constexpr std::array<std::pair<Role, const char*>, 4> kRoles = {{
    {Role::kCoordinator, "coordinator"},
    {Role::kServer, "server"},
    {Role::kWorker, "worker"},
    {Role::kOperator, "operator"},
}};

Error WrongPair(std::string what) { return Error{ErrorId::kKeyFile, std::move(what)}; }

Error WrongList(std::string what) { return Error{ErrorId::kTrustedList, std::move(what)}; }

}  // namespace

const char* RoleName(Role role) {
  for (const auto& [known, name] : kRoles) {
    if (known == role) return name;
  }
  return "nobody";
}

std::optional<Role> RoleOf(std::string_view name) {
  for (const auto& [role, known] : kRoles) {
    if (known == name) return role;
  }
  return std::nullopt;
}

bool IsPublicKey(std::string_view text) {
  std::array<std::uint8_t, kKeyBytes> bytes{};
  return text.size() == kKeyChars && text.find_first_of(" \t\r\n|\"',;_`~\\") == text.npos &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; }) &&
         zmq_z85_decode(bytes.data(), std::string(text).c_str()) != nullptr;
}

std::string KeyText(const std::uint8_t* bytes) {
  std::array<char, kKeyChars + 1> text{};
  zmq_z85_encode(text.data(), bytes, kKeyBytes);
  return text.data();
}

Result<KeyPair> MakeKeyPair() {
  std::array<char, kKeyChars + 1> public_key{};
  std::array<char, kKeyChars + 1> secret_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0) {
    return Error{ErrorCode::kInternal, std::string("libzmq makes no keys: ") +
                                           zmq_strerror(zmq_errno()) + " (built without CURVE?)"};
  }
  return KeyPair{public_key.data(), secret_key.data()};
}

std::string KeyFileText(const KeyPair& pair) {
  return "# ds node key: keep it secret\n" + std::string(kPublic) + pair.public_key + "\n" +
         std::string(kSecret) + pair.secret_key + "\n";
}

Result<KeyPair> ParseKeyFile(std::string_view text) {
  KeyPair pair;
  for (const auto& [number, line] : LinesOf(text)) {
    if (line.rfind(kPublic, 0) == 0 && pair.public_key.empty()) {
      pair.public_key = line.substr(kPublic.size());
    } else if (line.rfind(kSecret, 0) == 0 && pair.secret_key.empty()) {
      pair.secret_key = line.substr(kSecret.size());
    } else {
      // What stands there may be the secret: it is not repeated.
      return WrongPair("line " + std::to_string(number) +
                       ": is neither `public: KEY` nor `secret: KEY`");
    }
  }
  if (!IsPublicKey(pair.public_key)) return WrongPair("has no `public: KEY` of 40 characters");
  if (!IsPublicKey(pair.secret_key)) return WrongPair("has no `secret: KEY` of 40 characters");
  std::array<char, kKeyChars + 1> derived{};
  if (zmq_curve_public(derived.data(), pair.secret_key.c_str()) != 0 ||
      pair.public_key != derived.data()) {
    return WrongPair("the public key is not that of the secret one");
  }
  return pair;
}

Result<KeyPair> ReadKeyFile(const std::string& path) {
  PS_TRY(CheckSecretFile(path, SecretReaders::kOwner, "secret key",
                         "; `ds-cli auth create` makes a key"));
  const std::string text = PS_TRY(ReadListFile(path));
  auto pair = ParseKeyFile(text);
  if (!pair.ok()) return WrongPair(path + ": " + pair.error().message);
  return pair;
}

Result<TrustedKey> ParseTrustedLine(const std::string& line) {
  std::istringstream words(line);
  std::string role;
  TrustedKey key;
  words >> role >> key.name >> key.public_key;
  const auto known = RoleOf(role);
  if (!known) {
    return WrongList("`" + role + "` is no role: coordinator, server, worker or operator");
  }
  key.role = *known;
  if (!IsListName(key.name))
    return WrongList("a name of letters, digits and -_.@: must follow the role");
  if (!IsPublicKey(key.public_key)) {
    return WrongList("the public key of " + key.name + " must be 40 characters of Z85");
  }
  key.until_ms = PS_TRY(ReadUntil(words));
  return key;
}

Result<TrustedKeys> TrustedKeys::Parse(std::string_view text) {
  TrustedKeys list;
  std::set<std::pair<Role, std::string>> names;
  for (const auto& [number, line] : LinesOf(text)) {
    const std::string where = "line " + std::to_string(number) + ": ";
    auto key = ParseTrustedLine(line);
    if (!key.ok()) return WrongList(where + key.error().message);
    const std::string name = key->name;
    if (!names.emplace(key->role, name).second) {
      return WrongList(where + RoleName(key->role) + " " + name + " stands there twice");
    }
    if (!list.keys_.emplace(key->public_key, *key).second) {
      return WrongList(where + "the key of " + name + " stands there twice");
    }
  }
  return list;
}

Result<TrustedKeys> TrustedKeys::ReadFile(const std::string& path) {
  const std::string text = PS_TRY(ReadListFile(path));
  auto list = Parse(text);
  if (!list.ok()) return WrongList(path + ": " + list.error().message);
  return list;
}

const TrustedKey* TrustedKeys::Find(std::string_view public_key, std::int64_t now_ms) const {
  const auto at = keys_.find(public_key);
  if (at == keys_.end()) return nullptr;
  if (at->second.until_ms && now_ms >= *at->second.until_ms) return nullptr;
  return &at->second;
}

std::string TrustedLine(const TrustedKey& key) {
  std::string line = std::string(RoleName(key.role)) + " " + key.name + " " + key.public_key;
  if (key.until_ms) line += " until " + DateText(*key.until_ms);
  return line + "\n";
}

KeyedEndpoint SplitKey(std::string_view endpoint) {
  const std::size_t bar = endpoint.find('|');
  if (bar == std::string_view::npos) return {std::string(endpoint), ""};
  return {std::string(endpoint.substr(0, bar)), std::string(endpoint.substr(bar + 1))};
}

std::string WithKey(const std::string& address, const std::string& key) {
  return key.empty() ? address : address + "|" + key;
}

}  // namespace ps::net
