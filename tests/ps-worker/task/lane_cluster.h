// Servers for the tests of the worker's connections: the real rules of a lane behind real sockets.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "ps-server/core/lane_core.h"
#include "ps-server/core/lane_map.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::worker::testing {

// One process with some lanes, all on the caller's loop.
class LaneServer {
 public:
  LaneServer(net::Loop& loop, net::Context& context, std::string procid, std::uint32_t lanes)
      : procid_(std::move(procid)) {
    for (std::uint32_t i = 0; i < lanes; ++i) {
      auto lane = std::make_unique<Lane>();
      net::ZmqOptions options;
      options.max_frame_bytes = static_cast<std::int64_t>(wire::kMaxPayloadBytes);
      lane->router =
          net::ZmqSocket::Open(loop, context, net::ZmqKind::kRouter, std::move(options)).value();
      Lane* at = lane.get();
      lane->router->OnReceive([this, at](net::ZmqSocket::Frames&& frames) {
        if (frames.size() < 2 || frames.size() > 3) return;
        if (lose_request && lose_request()) return;
        const auto bytes = [](const zmq::message_t& frame) {
          return std::span<const std::byte>(static_cast<const std::byte*>(frame.data()),
                                            frame.size());
        };
        at->core.OnMessage(frames[0].to_string(), bytes(frames[1]),
                           frames.size() == 3 ? bytes(frames[2]) : std::span<const std::byte>());
        Flush(*at);
      });
      lane->endpoint = lane->router->Bind("tcp://127.0.0.1:*").value();
      lanes_.push_back(std::move(lane));
    }
  }

  const std::string& procid() const { return procid_; }
  std::vector<std::string> endpoints() const {
    std::vector<std::string> endpoints;
    for (const auto& lane : lanes_) endpoints.push_back(lane->endpoint);
    return endpoints;
  }

  void SetJob(JobId job, const LayoutView& layout, const server::JobRules& rules,
              const control::MapT& map, const control::LiveSetT& live) {
    for (std::uint32_t i = 0; i < lanes_.size(); ++i) {
      lanes_[i]->core.SetJob(server::JobSetup{
          job, layout, rules, server::LaneMapOf(map, procid_, i, layout.shard_count()).value(),
          server::LiveMembersOf(live).value()});
      Flush(*lanes_[i]);
    }
  }
  void BeginRound(JobId job, Round round, std::uint64_t live_version, std::uint64_t map_version) {
    for (const auto& lane : lanes_) {
      lane->core.BeginRound(job, round, live_version, map_version);
      Flush(*lane);
    }
  }
  void Restore(JobId job, Epoch epoch, const checkpoint::ShardImage& image) {
    for (const auto& lane : lanes_) {
      if (lane->core.FindShard(job, image.shard) == nullptr) continue;
      const Status status = lane->core.InstallRestored(job, epoch, image, false);
      EXPECT_TRUE(status.ok());
      Flush(*lane);
    }
  }
  const server::Shard* FindShard(JobId job, ShardId shard) const {
    for (const auto& lane : lanes_) {
      if (const server::Shard* found = lane->core.FindShard(job, shard)) return found;
    }
    return nullptr;
  }
  std::uint64_t Refused(wire::Code code) const {
    std::uint64_t refused = 0;
    for (const auto& lane : lanes_) {
      refused += lane->core.counters().refused[static_cast<std::size_t>(code)];
    }
    return refused;
  }

  // Frozen images of the rounds so far.
  std::vector<checkpoint::ShardImage> images;
  // Say true to lose a message.
  std::function<bool()> lose_request;
  std::function<bool()> lose_reply;
  // May damage an answer.
  std::function<void(server::LaneReply&)> change_reply;

 private:
  struct Lane {
    std::unique_ptr<net::ZmqSocket> router;
    server::LaneCore core;
    std::string endpoint;
  };

  void Flush(Lane& lane) {
    std::vector<server::LaneReply> replies;
    lane.core.TakeReplies(replies);
    for (server::LaneReply& reply : replies) {
      if (lose_reply && lose_reply()) continue;
      if (change_reply) change_reply(reply);
      net::ZmqSocket::Frames frames;
      frames.push_back(net::CopyFrame(reply.to.data(), reply.to.size()));
      frames.push_back(net::CopyFrame(reply.head.data(), reply.head.size()));
      if (!reply.payload.empty()) {
        frames.push_back(net::CopyFrame(reply.payload.data(), reply.payload.size()));
      }
      // A peer that has gone is no matter of the test.
      (void)lane.router->Send(std::move(frames)).ok();
    }
    for (server::LaneEvent& event : lane.core.TakeEvents()) {
      if (auto* frozen = std::get_if<server::LaneFrozen>(&event)) {
        for (const auto& shard : frozen->shards) images.push_back(shard.ToImage());
      }
    }
  }

  const std::string procid_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

// Places shard i on lane i % lanes, over all servers.
inline control::MapT MakeMap(std::uint64_t version, const std::vector<const LaneServer*>& servers,
                             std::uint32_t shards) {
  control::MapT map;
  map.version = version;
  std::vector<std::pair<std::uint16_t, std::uint16_t>> lanes;
  for (std::size_t i = 0; i < servers.size(); ++i) {
    auto entry = std::make_unique<control::ServerEntryT>();
    entry->procid = servers[i]->procid();
    entry->name = servers[i]->procid();
    entry->lanes = servers[i]->endpoints();
    for (std::size_t lane = 0; lane < entry->lanes.size(); ++lane) {
      lanes.emplace_back(static_cast<std::uint16_t>(i), static_cast<std::uint16_t>(lane));
    }
    map.servers.push_back(std::move(entry));
  }
  for (std::uint32_t i = 0; i < shards; ++i) {
    auto entry = std::make_unique<control::ShardEntryT>();
    entry->server = lanes[i % lanes.size()].first;
    entry->lane = lanes[i % lanes.size()].second;
    entry->epoch = 1;
    entry->lineage = 1;
    map.shards.push_back(std::move(entry));
  }
  return map;
}

inline control::LiveSetT MakeLive(std::uint64_t version,
                                  const std::vector<std::uint32_t>& incarnations,
                                  std::uint64_t first_clock = 0, bool draining = false) {
  control::LiveSetT live;
  live.version = version;
  for (std::size_t i = 0; i < incarnations.size(); ++i) {
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->worker = static_cast<std::uint32_t>(i);
    worker->incarnation = incarnations[i];
    worker->first_clock = first_clock;
    worker->state = draining ? control::WorkerState::Draining : control::WorkerState::Live;
    live.workers.push_back(std::move(worker));
  }
  return live;
}

}  // namespace ps::worker::testing
