// A checkpoint for the tests of commands.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/writer.h"

namespace ps::cli {

// Writes a checkpoint of one shard on one server; returns the hash of its manifest.
inline std::string WriteCheckpoint(const std::filesystem::path& round_directory,
                                   const std::vector<float>& values = {1, 2, 3, 4},
                                   Round round = Round(3), std::uint64_t time_ms = 0) {
  checkpoint::ShardImage image;
  image.job = JobId(7);
  image.round = round;
  image.shard = ShardId(0);
  image.epoch = Epoch(1);
  image.version = 5;
  image.block_elements = {4};
  image.values = values;
  auto writer = checkpoint::Writer::Open(round_directory / "server-1", 0);
  EXPECT_TRUE(writer.ok()) << writer.error().message;
  EXPECT_TRUE(writer->Add(image).ok());
  const auto written = writer->Finish();
  EXPECT_TRUE(written.ok());
  const auto& shard = written->front();

  checkpoint::Manifest manifest;
  manifest.job = JobId(7);
  manifest.job_name = "fashion";
  manifest.round = round;
  manifest.generation = 1;
  manifest.time_ms = time_ms;
  manifest.step = 1500;
  manifest.tables = {{"parameters", TableRule::Sgd, 4, {{"w", {4}, 0, 4}}}};
  manifest.shards = {{ShardId(0), "server-1", Epoch(1), shard.version, shard.bytes, shard.digest,
                      shard.values_digest, shard.rows, shard.state_bytes, shard.bases}};
  manifest.program_version = "0.1.0";
  manifest.spec_json = "{}";
  const auto text = checkpoint::ToJson(manifest);
  EXPECT_TRUE(text.ok()) << text.error().message;
  EXPECT_TRUE(checkpoint::WriteManifest(round_directory / "server-1", *text).ok());
  return checkpoint::Hash(*text);
}

}  // namespace ps::cli
