// Files of node keys as an operator keeps them: a pair for each process, and the list of those that
// are trusted (common/net/node_keys.h).
//
// The list is replaced at once, by a rename, and by one command at a time; comments stay. One
// thread.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/net/node_keys.h"
#include "common/result.h"

namespace ps::cli {

// Makes a pair of keys, writes it to `key_file` for its owner alone, and adds `key` with the new
// public key to the list, which is made if there is none. kConflict if the file is there already,
// or the list has somebody of that role and name; then nothing has changed.
Result<net::TrustedKey> CreateNodeKey(net::TrustedKey key, const std::filesystem::path& key_file,
                                      const std::filesystem::path& trusted);

// Draws the secret that guards the cluster's nodes in ZooKeeper (common/zookeeper/secret.h).
// kConflict if the file is there already.
Status CreateZooKeeperSecret(const std::filesystem::path& file);

// Takes all of that name and one of the roles (none: any) from the list, and returns them.
// kNotFound if there is none.
Result<std::vector<net::TrustedKey>> RevokeNodeKeys(const std::string& name,
                                                    const std::vector<net::Role>& roles,
                                                    const std::filesystem::path& trusted);

}  // namespace ps::cli
