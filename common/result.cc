#include "common/result.h"

#include "common/error_catalogue.h"

namespace ps {

const char* ErrorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInternal: return "internal";
    case ErrorCode::kUsage: return "usage";
    case ErrorCode::kInvalid: return "invalid";
    case ErrorCode::kNotFound: return "not_found";
    case ErrorCode::kConflict: return "conflict";
    case ErrorCode::kDenied: return "denied";
    case ErrorCode::kUnreachable: return "unreachable";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kMaybeApplied: return "maybe_applied";
    case ErrorCode::kClosed: return "closed";
    case ErrorCode::kIo: return "io";
  }
  return "unknown";
}

Error::Error(ErrorId id_, std::string message_) : id(id_), message(std::move(message_)) {
  const ErrorEntry* const entry = FindError(id_);
  PS_CHECK(entry != nullptr, static_cast<int>(id_));
  code = entry->code;
}

std::string ErrorIdName(ErrorId id) {
  const std::string digits = std::to_string(static_cast<int>(id));
  return "DS-E" + std::string(digits.size() < 4 ? 4 - digits.size() : 0, '0') + digits;
}

std::string ErrorLine(const Error& error) { return ErrorIdName(error.id) + ": " + error.message; }

}  // namespace ps
