#include "checkpoint/round_path.h"

#include <charconv>
#include <cstdint>
#include <system_error>

namespace ps::checkpoint {
namespace {

constexpr std::string_view kJob = "job-";
constexpr std::string_view kRound = "ckpt-";

std::optional<std::uint64_t> NumberAfter(std::string_view prefix, std::string_view name) {
  if (name.substr(0, prefix.size()) != prefix) return std::nullopt;
  std::uint64_t number = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

}  // namespace

std::string JobFolder(JobId job) { return std::string(kJob) + std::to_string(job.value()); }

std::string RoundFolder(Round round) { return std::string(kRound) + std::to_string(round.value()); }

std::string RoundPath(JobId job, Round round) { return JobFolder(job) + "/" + RoundFolder(round); }

std::optional<JobId> JobOfFolder(std::string_view name) {
  const auto number = NumberAfter(kJob, name);
  return number ? std::optional(JobId(*number)) : std::nullopt;
}

std::optional<Round> RoundOfFolder(std::string_view name) {
  const auto number = NumberAfter(kRound, name);
  return number ? std::optional(Round(*number)) : std::nullopt;
}

}  // namespace ps::checkpoint
