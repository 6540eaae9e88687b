// Reads what a job loads of other jobs' checkpoints into its new shards.
//
// The coordinator has put the number of the job and of the round into each source
// of the spec. Sources stay open from shard to shard of the same job. Blocks on the
// disk; belongs to one restore thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/job/job_spec.h"
#include "common/job/load_mapping.h"
#include "common/result.h"
#include "ps-server/core/partial_load.h"
#include "ps-server/shell/checkpoint_store.h"

namespace ps::server {

// What a job loads; constant.
struct LoadOrder {
  JobId job;
  std::vector<LoadSourceSpec> sources;  // those that are checkpoints
  ModelParts parts;                     // of the job's model

  // kInvalid if a source does not name its job and round by numbers.
  static Result<LoadOrder> Of(JobId job, const JobSpec& spec, const control::LayoutT& layout);
};

class SourceLoader {
 public:
  explicit SourceLoader(std::function<std::unique_ptr<RestoreReader>()> make_reader)
      : make_reader_(std::move(make_reader)) {}

  // As RestoreReader::SetSources().
  void SetSources(const std::vector<PartSource>& sources);

  // `shard` waits for a checkpoint, and is Blank if this is Ok. kInvalid or kNotFound if a source
  // is damaged or gone, or not what the job was checked against; the message names the source, and
  // the shard or the tensor.
  Status Load(const LoadOrder& order, Shard& shard);
  // As RestoreReader::again(), with another shard.
  bool again() const { return again_; }

 private:
  struct Source {
    std::string round_name;
    std::unique_ptr<RestoreReader> reader;
    LoadSource source;
  };

  Status Open(const LoadOrder& order);
  Status LoadAll(const LoadOrder& order, Shard& shard);

  const std::function<std::unique_ptr<RestoreReader>()> make_reader_;
  JobId job_;  // whose sources are open
  std::vector<PartSource> places_;
  std::vector<Source> sources_;
  bool again_ = false;
};

}  // namespace ps::server
