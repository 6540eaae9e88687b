// Files of keys, tokens and lists of them, as operators keep them: written as a whole, for whom
// they are meant, by one command at a time. One thread.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::cli {

// Durable under its name with that mode, or not there at all. Makes its folder if there is none.
// kConflict: it is `fresh`, and there is one. kDenied, kIo: it cannot be written.
Status WriteWhole(const std::filesystem::path& path, const std::string& text, mode_t mode,
                  bool fresh);

// A list as it is, with a line end behind its last line; `heading` if there is none yet.
Result<std::string> ReadOrBegin(const std::filesystem::path& list, const std::string& heading);

// The list without the entries, not comments, that have one of these words.
std::string WithoutEntries(const std::string& text, const std::vector<std::string>& words);

// A new secret for its owner alone, and the list that knows it: both, or nothing has changed.
Status WriteSecretAndList(const std::filesystem::path& secret_file, const std::string& secret,
                          const std::filesystem::path& list_file, const std::string& list);

// Makes the folder of the file if there is none. As long as the result lives, no other command has
// it.
Result<net::UniqueFd> LockFolderOf(const std::filesystem::path& path);

}  // namespace ps::cli
