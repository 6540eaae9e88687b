// What a call that may fail returns: Status, or Result<T> with a value.
//
// An Error has a code, for callers that act differently on it, an id, by which a
// human finds its cause and what to do next (DS-E0203; common/error_catalogue.h), and
// a message that names the peer, file, job or shard.
// Nothing in this project throws across a function that returns one of these.
//
//   Result<File> Open(path);
//   auto file = PS_TRY(Open(path));      // returns the error to the caller
//   PS_TRY(file.Sync());                 // the same for a Status
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "common/check.h"

namespace ps {

enum class ErrorCode {
  kInternal,
  kUsage,    // a flag or an argument is wrong
  kInvalid,  // a job file, data file, message or checkpoint is wrong
  kNotFound,
  kConflict,  // exists already, or is in a state that forbids the call
  kDenied,
  kUnreachable,  // the peer does not answer
  kTimeout,
  kMaybeApplied,  // the outcome is unknown: read back before trying again
  kClosed,        // the object was closed, or the process stops
  kIo,            // disk or file system
};

// "not_found", "timeout", ... for the API and ds-cli.
const char* ErrorCodeName(ErrorCode code);

// What an error is called for good; error_id.h has them. Only who names one includes that.
enum class ErrorId : std::uint16_t;

// Of all errors with this code that have no id of their own: DS-E0001 to DS-E0011.
constexpr ErrorId GenericId(ErrorCode code) {
  return static_cast<ErrorId>(static_cast<std::uint16_t>(code) + 1);
}

struct Error {
  Error() = default;
  Error(ErrorCode code_, std::string message_)
      : code(code_), id(GenericId(code_)), message(std::move(message_)) {}
  // With the code that the catalogue has for the id.
  Error(ErrorId id_, std::string message_);

  ErrorCode code = ErrorCode::kInternal;
  ErrorId id = GenericId(ErrorCode::kInternal);
  std::string message;
};

// "DS-E0203"
std::string ErrorIdName(ErrorId id);

// "DS-E0203: job.yaml:3: ...", for logs and standard error.
std::string ErrorLine(const Error& error);

// Prefixes the message: Annotate(error, "shard 7: ").
inline Error Annotate(Error error, const std::string& prefix) {
  error.message.insert(0, prefix);
  return error;
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Error error)
      : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    PS_CHECK(ok(), error_message());
    return std::get<0>(state_);
  }
  const T& value() const& {
    PS_CHECK(ok(), error_message());
    return std::get<0>(state_);
  }
  T&& value() && {
    PS_CHECK(ok(), error_message());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& {
    PS_CHECK(!ok(), "a result with a value has no error");
    return std::get<1>(state_);
  }

 private:
  std::string error_message() const { return ok() ? std::string() : std::get<1>(state_).message; }

  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    PS_CHECK(error_.has_value(), "an ok status has no error");
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;
inline Status Ok() { return Status(); }

namespace internal {
inline void TakeValue(Status&&) {}
template <typename T>
T TakeValue(Result<T>&& result) {
  return std::move(result).value();
}
}  // namespace internal

}  // namespace ps

// Evaluates to the value of a Result, or returns its error from the enclosing function.
#define PS_TRY(expression)                                 \
  __extension__({                                          \
    auto ps_try_result = (expression);                     \
    if (!ps_try_result.ok()) return ps_try_result.error(); \
    ::ps::internal::TakeValue(std::move(ps_try_result));   \
  })
