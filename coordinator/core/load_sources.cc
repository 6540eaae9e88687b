#include "coordinator/core/load_sources.h"

#include <algorithm>

#include "common/error_id.h"
#include "common/job/load_mapping.h"

namespace ps::coordinator {
namespace {

// The job and its checkpoint that `from` of a source names.
struct Found {
  const Job* job = nullptr;
  const CommittedCheckpoint* checkpoint = nullptr;
};

Result<Found> FindSource(const JobSpec& spec, std::size_t number, const JobFinder& find) {
  const std::string name = LoadSourceName(spec, number);
  const CheckpointOrigin origin = ParseOrigin(spec.checkpoint.load[number].from);
  const Job* const job = find(origin.job);
  if (job == nullptr) {
    return Error{ErrorId::kLoadSourceMissing, name + "there is no job " + origin.job};
  }
  const JobState& state = job->state();
  if (!origin.round.has_value()) {
    if (const CommittedCheckpoint* const newest = state.NewestCheckpoint())
      return Found{job, newest};
    return Error{ErrorId::kLoadSourceMissing, name + "job " + origin.job + " has no checkpoint"};
  }
  const auto at = std::find_if(
      state.checkpoints.begin(), state.checkpoints.end(),
      [&](const CommittedCheckpoint& one) { return one.round == Round(*origin.round); });
  if (at == state.checkpoints.end()) {
    return Error{ErrorId::kLoadSourceMissing, name + "job " + origin.job + " has no checkpoint " +
                                                  std::to_string(*origin.round)};
  }
  if (at->damaged) {
    return Error{ErrorId::kCheckpointNotUsable, name + "checkpoint " +
                                                    std::to_string(*origin.round) + " of job " +
                                                    origin.job + " is damaged"};
  }
  return Found{job, &*at};
}

std::string Counted(std::size_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

Status PinLoadSources(JobSpec& spec, const JobFinder& find) {
  for (std::size_t i = 0; i < spec.checkpoint.load.size(); ++i) {
    LoadSourceSpec& source = spec.checkpoint.load[i];
    if (source.from.empty()) continue;
    const Found found = PS_TRY(FindSource(spec, i, find));
    source.from = std::to_string(found.job->id().value()) + "@" +
                  std::to_string(found.checkpoint->round.value());
  }
  return Ok();
}

Result<std::vector<std::string>> CheckLoadSources(const JobSpec& spec,
                                                  const control::PreflightResultT& preflight,
                                                  const JobFinder& find) {
  if (spec.checkpoint.load.empty()) return std::vector<std::string>();
  const ModelParts parts = PS_TRY(ModelParts::Of(*preflight.layout));
  LoadClaims claims;
  std::vector<std::string> sentences;
  std::string findings;
  const auto note = [&findings](const Error& error) {
    findings += (findings.empty() ? "" : "\n") + error.message;
  };
  for (const std::string& tensor : preflight.file_tensors) {
    if (const Status added = claims.AddTensor(tensor, "a file of checkpoint.load"); !added.ok()) {
      note(added.error());
    }
  }
  if (!preflight.file_tensors.empty()) {
    sentences.push_back("begins with " + Counted(preflight.file_tensors.size(), "tensor") +
                        " of files");
  }
  for (std::size_t i = 0; i < spec.checkpoint.load.size(); ++i) {
    if (spec.checkpoint.load[i].from.empty()) continue;
    const Found found = PS_TRY(FindSource(spec, i, find));
    const ModelParts source = PS_TRY(ModelParts::Of(found.job->definition().layout));
    const auto mapping = MapLoadSource(spec, i, source, parts);
    if (!mapping.ok()) {
      note(mapping.error());
      continue;
    }
    const Status added = claims.Add(*mapping, parts, LoadSourceName(spec, i));
    if (!added.ok()) note(added.error());
    sentences.push_back("begins with " + Counted(mapping->tensors.size(), "tensor") + " and " +
                        Counted(mapping->tables.size(), "embedding table") + " of checkpoint " +
                        std::to_string(found.checkpoint->round.value()) + " of job " +
                        std::to_string(found.job->id().value()) + " (" + found.job->state().name +
                        ")");
  }
  if (!findings.empty()) return Error{ErrorId::kLoadMapping, findings};
  return sentences;
}

std::string SpecWithoutFiles(const JobDefinition& definition) {
  JobSpec spec = definition.spec;
  const auto files = std::erase_if(
      spec.checkpoint.load, [](const LoadSourceSpec& source) { return !source.file.empty(); });
  return files == 0 ? definition.spec_json : ResolvedJson(spec);
}

std::set<Round> RoundsLoaded(const JobSpec& spec, JobId job) {
  std::set<Round> rounds;
  for (const LoadSourceSpec& source : spec.checkpoint.load) {
    if (source.from.empty()) continue;
    const CheckpointOrigin origin = ParseOrigin(source.from);
    if (origin.round && origin.job == std::to_string(job.value()))
      rounds.insert(Round(*origin.round));
  }
  return rounds;
}

}  // namespace ps::coordinator
