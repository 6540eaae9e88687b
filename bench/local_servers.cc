#include "bench/local_servers.h"

#include <chrono>
#include <future>
#include <limits>
#include <string>
#include <utility>

#include "common/net/zmq_socket.h"
#include "ps-server/core/lane_map.h"

namespace ps::bench {

LocalServers::LocalServers() = default;
LocalServers::~LocalServers() = default;

Result<std::unique_ptr<LocalServers>> LocalServers::Start(const Options& options, const Plan& plan,
                                                          std::uint32_t workers) {
  std::unique_ptr<LocalServers> servers(new LocalServers());
  const std::uint32_t shards = plan.layout.shard_count();
  control::MapT& map = servers->map_;
  map.version = 1;
  for (std::uint32_t server = 0; server < options.servers; ++server) {
    auto entry = std::make_unique<control::ServerEntryT>();
    entry->procid = "server-" + std::to_string(server);
    entry->name = entry->procid;
    for (std::uint32_t number = 0; number < options.lanes; ++number) {
      server::LaneOptions lane;
      lane.number = number;
      servers->lanes_.push_back(
          PS_TRY(server::Lane::Start(servers->context_, lane, [](const server::LaneEvent&) {})));
      entry->lanes.push_back(servers->lanes_.back()->endpoint());
    }
    map.servers.push_back(std::move(entry));
  }
  // Neighbouring shards share a lane, as the coordinator places them.
  const std::uint64_t lanes = std::uint64_t{options.servers} * options.lanes;
  for (std::uint32_t shard = 0; shard < shards; ++shard) {
    const auto lane = static_cast<std::uint32_t>(shard * lanes / shards);
    auto entry = std::make_unique<control::ShardEntryT>();
    entry->server = static_cast<std::uint16_t>(lane / options.lanes);
    entry->lane = static_cast<std::uint16_t>(lane % options.lanes);
    entry->epoch = 1;
    entry->lineage = 1;
    map.shards.push_back(std::move(entry));
  }
  server::LiveMembers live;
  live.version = 1;
  for (std::uint32_t worker = 0; worker < workers; ++worker) {
    server::Member member;
    member.worker = WorkerId(worker);
    member.incarnation = IncarnationOf(worker);
    live.members.push_back(member);
  }
  const JobSpec spec = SpecOf(options, plan, workers);
  server::JobRules rules =
      server::JobRules::Of(spec, static_cast<std::uint64_t>(spec.data.train.records));
  rules.version_gap_max = std::numeric_limits<std::uint64_t>::max();
  for (std::size_t i = 0; i < servers->lanes_.size(); ++i) {
    const std::size_t server = i / options.lanes;
    const auto number = static_cast<std::uint32_t>(i % options.lanes);
    server::JobSetup setup{
        kLocalJob, plan.layout, rules,
        PS_TRY(server::LaneMapOf(map, map.servers[server]->procid, number, shards)), live};
    PS_TRY(servers->lanes_[i]->Post([setup](server::LaneCore& core) { core.SetJob(setup); }));
  }
  return servers;
}

Result<LocalServers::Content> LocalServers::Count(double deadline_seconds) const {
  Content sum;
  for (const auto& lane : lanes_) {
    // Shared with the command, which may run after the wait for it has ended.
    auto answer = std::make_shared<std::promise<Content>>();
    auto future = answer->get_future();
    PS_TRY(lane->Post([answer](server::LaneCore& core) {
      Content content;
      content.pushes_applied = core.counters().pushes_applied;
      for (const server::JobStatus& job : core.Report()) {
        for (const auto& table : job.tables) content.rows += table.status.rows;
      }
      answer->set_value(content);
    }));
    if (future.wait_for(std::chrono::duration<double>(deadline_seconds)) !=
        std::future_status::ready) {
      return Error{ErrorCode::kTimeout,
                   "the lane at " + lane->endpoint() + " does not tell what it has applied"};
    }
    const Content content = future.get();
    sum.pushes_applied += content.pushes_applied;
    sum.rows += content.rows;
  }
  return sum;
}

}  // namespace ps::bench
