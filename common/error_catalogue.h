// What an operator is told about an error beyond its message: its cause and what to do next.
//
// Every entry is an id of error_id.h with the code that errors with it have. `ds-cli explain`
// prints entries, docs/errors.md is made of them (`ds-cli explain --markdown`), and ds-cli says
// `next` below the error. Constant, from any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/error_id.h"
#include "common/result.h"

namespace ps {

struct ErrorEntry {
  ErrorId id;
  ErrorCode code;
  const char* title;  // what is wrong, in general: "a key of the job file is unknown"
  const char* cause;  // how that comes about
  const char* next;   // a command, or an act; JOB, NODE, FILE... stand for what the message names
};

// By number.
std::span<const ErrorEntry> ErrorCatalogue();

// nullptr: the catalogue has no such id. Another version may.
const ErrorEntry* FindError(ErrorId id);

// Errors about one thing have numbers from `first` to `first + 99`.
struct ErrorGroup {
  int first;
  const char* name;
};
std::span<const ErrorGroup> ErrorGroups();

// Whether all errors of a code have it that have no id of their own.
constexpr bool IsGeneric(ErrorId id) { return static_cast<int>(id) < 100; }

// "DS-E0203", "ds-e0203", "E0203", "0203" or "203". An id that is not in the catalogue has been
// read well, too. nullopt: no such text.
std::optional<ErrorId> ParseErrorId(std::string_view text);

}  // namespace ps
