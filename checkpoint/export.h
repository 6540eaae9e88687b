// A checkpoint as files that other programs read.
//
//   model.safetensors     the dense tensors by their names, fp32; counters (integers on the model's
//                         side) int64. Format: https://github.com/huggingface/safetensors#format
//   <table>.keys.npy      of each table of rows: uint64 [rows]
//   <table>.values.npy    fp32 [rows, width], in the order of the keys' file
//   manifest.json         the manifest of the checkpoint
//
// Rows come shard by shard, and in a shard by key: the same checkpoint gives the
// same bytes, wherever its shards were written. What optimizers keep is left
// out. NumPy's format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
//
// Every shard is compared with its digest, and nothing stays if one differs.
// Blocks on the disk; any thread.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/verify.h"
#include "common/result.h"

namespace ps::checkpoint {

struct ExportReport {
  Manifest manifest;
  std::vector<SealedFile> files;  // what was written, with digests, by name
};

// Writes the folder `directory`, which must not exist: all of it or nothing (it is called
// `directory`.partial until it is whole and durable). kUsage if `directory` exists, kInvalid for a
// damaged checkpoint. `expected_hash` as for FindManifest.
Result<ExportReport> ExportCheckpoint(const std::filesystem::path& round_directory,
                                      const std::string& expected_hash,
                                      const std::filesystem::path& directory,
                                      const VerifyProgress& progress);

}  // namespace ps::checkpoint
