#include "common/result.h"

namespace ps {

const char* ErrorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInternal: return "internal";
    case ErrorCode::kUsage: return "usage";
    case ErrorCode::kInvalid: return "invalid";
    case ErrorCode::kNotFound: return "not found";
    case ErrorCode::kConflict: return "conflict";
    case ErrorCode::kDenied: return "denied";
    case ErrorCode::kUnreachable: return "unreachable";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kMaybeApplied: return "maybe applied";
    case ErrorCode::kClosed: return "closed";
    case ErrorCode::kIo: return "io";
  }
  return "unknown";
}

}  // namespace ps
