#include "cli/node_key_files.h"

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
  net::TrustedKeys keys;
};
Result<List> ReadList(const fs::path& trusted) {
  List list;
  std::error_code ignored;
  if (fs::exists(trusted, ignored)) {
    list.keys = PS_TRY(net::TrustedKeys::ReadFile(trusted.string()));
  }
  list.text = PS_TRY(ReadOrBegin(trusted,
                                 "# Who may talk to this cluster: the same list on every node.\n"
                                 "# ROLE NAME PUBLIC-KEY [until YYYY-MM-DD]\n"));
  return list;
}

}  // namespace

Result<net::TrustedKey> CreateNodeKey(net::TrustedKey key, const fs::path& key_file,
                                      const fs::path& trusted) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(trusted));
  List list = PS_TRY(ReadList(trusted));
  const auto& known = list.keys.keys();
  const bool taken = std::any_of(known.begin(), known.end(), [&](const auto& entry) {
    return entry.second.role == key.role && entry.second.name == key.name;
  });
  if (taken) {
    return Error{ErrorId::kNameTaken, trusted.string() + ": has a " + net::RoleName(key.role) +
                                          " " + key.name + " already; `ds-cli auth revoke " +
                                          key.name + "` takes it away"};
  }
  const net::KeyPair pair = PS_TRY(net::MakeKeyPair());
  key.public_key = pair.public_key;
  list.text += net::TrustedLine(key);
  // What cannot be read again is not written.
  PS_TRY(net::TrustedKeys::Parse(list.text));
  PS_TRY(WriteSecretAndList(key_file, net::KeyFileText(pair), trusted, list.text));
  return key;
}

Status CreateZooKeeperSecret(const fs::path& file) {
  const net::KeyPair drawn = PS_TRY(net::MakeKeyPair());
  return WriteWhole(file, "ds:" + drawn.secret_key + "\n", 0600, /*fresh=*/true);
}

Result<std::vector<net::TrustedKey>> RevokeNodeKeys(const std::string& name,
                                                    const std::vector<net::Role>& roles,
                                                    const fs::path& trusted) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(trusted));
  const List list = PS_TRY(ReadList(trusted));
  std::vector<net::TrustedKey> gone;
  for (const auto& [public_key, key] : list.keys.keys()) {
    const bool of_role =
        roles.empty() || std::find(roles.begin(), roles.end(), key.role) != roles.end();
    if (key.name == name && of_role) gone.push_back(key);
  }
  if (gone.empty()) {
    return Error{ErrorId::kNameUnknown, trusted.string() + ": nobody of the name " + name +
                                            " is trusted (`ds-cli auth list`)"};
  }
  std::vector<std::string> words;
  for (const net::TrustedKey& key : gone) words.push_back(key.public_key);
  PS_TRY(WriteWhole(trusted, WithoutEntries(list.text, words), 0644, /*fresh=*/false));
  return gone;
}

}  // namespace ps::cli
