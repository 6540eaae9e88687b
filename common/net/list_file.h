// Text files of one entry a line that an operator edits: lists of keys and of tokens.
//
// A line that begins with # is a comment. Pure, but for ReadListFile(); any thread.
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"

namespace ps::net {

// Lines without comments, ends trimmed, with their numbers from 1.
std::vector<std::pair<int, std::string>> LinesOf(std::string_view text);

// The whole of a file of at most 4 MiB. kIo if it cannot be read, kInvalid if it is larger.
Result<std::string> ReadListFile(const std::string& path);

// For people, up to 128 letters, digits and `-_.@:`.
bool IsListName(std::string_view name);

// "2027-01-31": its first moment, UTC. Nothing if it is no date.
std::optional<std::int64_t> DateMs(const std::string& text);
// What may end a line: nothing, or "until DATE". kInvalid otherwise; the words are not in the
// message, as they may be secrets.
Result<std::optional<std::int64_t>> ReadUntil(std::istream& words);
// DateMs() the other way.
std::string DateText(std::int64_t unix_ms);

}  // namespace ps::net
