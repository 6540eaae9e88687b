// Brings a whole checkpoint together from wherever its parts lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

struct FetchReport {
  Manifest manifest;
  std::uint64_t bytes = 0;  // copied; what was there already is not counted
  std::uint32_t parts = 0;  // of this round and of those it builds on
};

// Copies the checkpoint in `directory` ("job-7/ckpt-12") with all that it builds on to the same
// paths below `root`, each part from the first of `sources` that has it undamaged. What `root` has
// already stays, so that a fetch which ended early is gone on with. The manifest is written last:
// without it nothing counts. `hash` is that of the manifest; empty: the first one found is taken.
// `progress`, which may be empty, gets the bytes of each piece; false ends it with kClosed.
// kNotFound if no source has the manifest or a part, else the error of a source that may have it.
Result<FetchReport> FetchCheckpoint(const std::vector<const Storage*>& sources,
                                    const std::filesystem::path& directory, const std::string& hash,
                                    const std::filesystem::path& root,
                                    const std::function<bool(std::uint64_t)>& progress);

}  // namespace ps::checkpoint
