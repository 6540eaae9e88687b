// Replays the ring of a dead task: speaks to the servers as that task until every shard has a
// verdict for its last push, and again whenever shards move (rule W7).
//
// Belongs to the loop's thread. The callback must not destroy the ghost.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "common/result.h"
#include "ps-worker/agent/ring_store.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/data_client.h"

namespace ps::worker {

class Ghost {
  struct Private {};  // makes the constructor below ours alone

 public:
  // Under this map every shard has given its verdict up to `last_clock`.
  using DoneFn = std::function<void(const control::ReplayDoneT&)>;

  // kNotFound or kInvalid if there is no ring that could be replayed. `token`: of the job.
  static Result<std::unique_ptr<Ghost>> Start(net::Loop& loop, net::Context& context,
                                              const RingStore& store, const RingKey& key,
                                              std::uint64_t token, DoneFn done);
  Ghost(Private, net::Loop& loop, net::Context& context, RetentionRing ring, const RingKey& key,
        std::uint64_t token, DoneFn done);
  Ghost(const Ghost&) = delete;
  Ghost& operator=(const Ghost&) = delete;

  // A map that is not newer than the present one only repeats the report, if there is one.
  Status SetMap(const control::MapT& map);

 private:
  void Check();
  void Report(Clock clock);
  void OnBroken(const Error& error);

  const RingKey key_;
  const DoneFn done_;
  RetentionRing ring_;
  std::unique_ptr<DataClient> client_;
  std::optional<Error> broken_;
  std::optional<std::uint64_t> reported_;  // version of the map
};

}  // namespace ps::worker
