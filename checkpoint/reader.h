// Reads one server's part of a checkpoint round.
//
// Nothing that is read is trusted: the list of files is sealed with sizes and
// digests, each block carries its own checksum, and a shard's digest can be
// compared with that of the manifest. Whatever does not fit is kInvalid, with
// the file or the shard in the message. Nothing in the directory is written.
//
// One thread at a time; several readers of one directory may be open at once.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/content.h"
#include "checkpoint/image.h"
#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

// Where the part with the name of this one lies in an earlier round.
std::filesystem::path BaseDirectory(const std::filesystem::path& part, Round base);

class Reader {
 public:
  // kNotFound if there is no such directory. Checks that every file is there, has its size, and,
  // but for the large ones, its digest. `storage` outlives the reader; what is on another host is
  // read from there piece by piece, as it is needed.
  static Result<Reader> Open(const std::filesystem::path& directory,
                             const Storage& storage = ThisHost());

  Reader(Reader&&) noexcept;
  Reader& operator=(Reader&&) noexcept;
  ~Reader();

  // In increasing order.
  const std::vector<ShardId>& ListShards() const;

  // Gives a shard to `sink` as it is read, with what it builds on in other parts. Only once this is
  // Ok is what `sink` got whole and as `digest` says, which is what the manifest says (empty: not
  // compared). kNotFound if the shard is not in this part, kInvalid if a part that it builds on is
  // missing or damaged.
  Status ReadShard(ShardId shard, const std::string& digest, ShardSink& sink) const;
  // The same as an image.
  Result<ShardImage> ReadShard(ShardId shard, const std::string& digest = "") const;

  // What a shard is, without its content.
  Result<ShardMeta> ReadMeta(ShardId shard) const;

  // The rounds that a shard builds on, newest first: in the parts with the name of this one in the
  // round directories `ckpt-<round>` beside that of this one.
  Result<std::vector<Round>> ListBases(ShardId shard) const;

  // Reads every byte of every file of this part and compares it with the seal. `progress`, which
  // may be empty, gets the bytes of each piece that was read.
  Status VerifyFiles(const std::function<void(std::uint64_t)>& progress) const;

 private:
  class Impl;
  explicit Reader(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace ps::checkpoint
