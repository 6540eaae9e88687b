// Files of keys, tokens and lists of them, as operators keep them: written as a whole, for whom
// they are meant, by one command at a time. One thread.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::cli {

// Durable under its name with that mode, or not there at all. Makes its folder if there is none.
// kConflict: it is `fresh`, and there is one. kDenied, kIo: it cannot be written.
Status WriteWhole(const std::filesystem::path& path, const std::string& text, mode_t mode,
                  bool fresh);

// Makes the folder of the file if there is none. As long as the result lives, no other command has
// it.
Result<net::UniqueFd> LockFolderOf(const std::filesystem::path& path);

}  // namespace ps::cli
