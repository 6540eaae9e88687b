// `ds-cli job why`: names what a job waits for, from two looks at it.
#pragma once

#include <string>
#include <vector>

#include "cli/output.h"

namespace ps::cli {

struct Cause {
  enum class Weight { kBlocked, kSlow, kRisk, kFine };
  Weight weight = Weight::kFine;
  std::string what;
  std::string evidence;  // the figures it was seen by
  std::string next;      // what to do; empty: nothing
};

const char* WeightName(Cause::Weight weight);  // "blocked", "slow", "risk", "fine"

struct JobLooks {
  Json before;  // JOB of the REST interface; members may be missing
  Json after;
  double seconds = 0;           // between the two
  Json nodes = Json::array();   // as the REST interface lists them
  Json events = Json::array();  // of the job, the oldest first
};

// What keeps the job from going (blocked), from going faster (slow), or may harm it later (risk),
// the worst first. Never empty: if nothing is wrong, one fine cause says what the time goes into.
std::vector<Cause> Diagnose(const JobLooks& looks);

}  // namespace ps::cli
