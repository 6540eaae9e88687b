#include "coordinator/core/members.h"

namespace ps::coordinator {

const char* DutyName(Duty duty) {
  switch (duty) {
    case Duty::kFull: return "full";
    case Duty::kCordoned: return "cordoned";
    case Duty::kDraining: return "draining";
  }
  return "unknown";
}

std::optional<Duty> DutyOf(const std::string& name) {
  for (const Duty duty : {Duty::kFull, Duty::kCordoned, Duty::kDraining}) {
    if (name == DutyName(duty)) return duty;
  }
  return std::nullopt;
}

}  // namespace ps::coordinator
