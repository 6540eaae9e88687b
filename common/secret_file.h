// Files with secrets: keys, tokens, passwords.
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "common/error_id.h"
#include "common/result.h"

namespace ps {

enum class SecretReaders {
  kOwner,
  kOwnerAndGroup  // the group may read it, as Debian's ssl-cert does
};

// Ok if nobody else may use the file. kIo if it cannot be looked at, and `hint` is what to do then;
// kDenied if others may use it. `what` is in it, as in "secret key".
inline Status CheckSecretFile(const std::string& path, SecretReaders readers,
                              const std::string& what, const std::string& hint = "") {
  struct stat state {};
  if (::stat(path.c_str(), &state) != 0) {
    return Error{ErrorId::kSecretUnreadable,
                 path + ": cannot be read: " + std::strerror(errno) + hint};
  }
  const mode_t denied =
      S_IRWXO | (readers == SecretReaders::kOwner ? mode_t{S_IRWXG} : mode_t{S_IWGRP});
  if ((state.st_mode & denied) == 0) return Ok();
  return Error{ErrorId::kSecretExposed, path + ": others than its owner may use this " + what +
                                            "; `chmod 600` it, or make a new one if they have"};
}

}  // namespace ps
