// Who may speak to whom: the key pair of a process, and the list of those that it trusts.
//
// Every daemon and every operator has a pair of CURVE keys of its own (Curve25519, as ZeroMQ uses
// it: RFC 26/ZMTP-CURVE), in a file that nobody else can read:
//
//     # ds node key: keep it secret
//     public: <40 characters>
//     secret: <40 characters>
//
// All nodes have the same list of trusted keys, a line for each:
//
//     # role  name    public key   [until DATE]
//     server  node7   <40 characters>
//     worker  node9   <40 characters>   until 2027-01-31
//
// Keys are written in Z85 (RFC 32/Z85). A public key stands once; what is not in the list, or not
// any more, or after its date (00:00 UTC), is nobody. Pure, but for ReadFile*(); any thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace ps::net {

enum class Role : std::uint8_t { kCoordinator, kServer, kWorker, kOperator };
const char* RoleName(Role role);  // "coordinator", "server", "worker", "operator"
std::optional<Role> RoleOf(std::string_view name);

struct KeyPair {
  std::string public_key;  // Z85, 40 characters, as the next
  std::string secret_key;
};

// A new pair, from the random numbers of the system.
Result<KeyPair> MakeKeyPair();
std::string KeyFileText(const KeyPair& pair);
// kInvalid if it is no key file, or the two do not belong together.
Result<KeyPair> ParseKeyFile(std::string_view text);
// kIo if it cannot be read; kDenied if its group or others may read or write it.
Result<KeyPair> ReadKeyFile(const std::string& path);

struct TrustedKey {
  Role role = Role::kWorker;
  std::string name;  // for people: letters, digits and `-_.@:`
  std::string public_key;
  std::optional<std::int64_t> until_ms;  // Unix time
};

// A line of the list. kInvalid if it makes no sense.
Result<TrustedKey> ParseTrustedLine(const std::string& line);
// The same the other way, with its end.
std::string TrustedLine(const TrustedKey& key);

class TrustedKeys {
 public:
  // kInvalid, beginning with "line N: ", if a line makes no sense or a key or a name stands twice.
  static Result<TrustedKeys> Parse(std::string_view text);
  // kIo if it cannot be read; kInvalid names the file too.
  static Result<TrustedKeys> ReadFile(const std::string& path);

  // Null: nobody, or not any more.
  const TrustedKey* Find(std::string_view public_key, std::int64_t now_ms) const;
  const std::map<std::string, TrustedKey, std::less<>>& keys() const { return keys_; }

 private:
  std::map<std::string, TrustedKey, std::less<>> keys_;  // by public key
};

// 40 characters of Z85.
bool IsPublicKey(std::string_view text);
// Of 32 bytes.
std::string KeyText(const std::uint8_t* bytes);

// Where to connect to, and whose key must answer there: "tcp://10.0.0.7:4711|KEY", or without one.
struct KeyedEndpoint {
  std::string address;
  std::string key;  // empty: any
};
KeyedEndpoint SplitKey(std::string_view endpoint);
std::string WithKey(const std::string& address, const std::string& key);

}  // namespace ps::net
