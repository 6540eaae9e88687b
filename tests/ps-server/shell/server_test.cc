// A whole server, with a coordinator and workers that the test plays.
#include "ps-server/shell/server.h"

#include <gtest/gtest.h>

#include <deque>

#include "checkpoint/files.h"
#include "checkpoint/remote/file_service.h"
#include "checkpoint/writer.h"
#include "common/net/http_client.h"
#include "common/net/zmq_socket.h"
#include "tests/ps-server/shell/lane_client.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server::testing {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSpec = R"({"apiVersion":"ds/v1","kind":"TrainJob","name":"test",
  "model":{"type":"ledger","blocks":4},
  "data":{"train":{"format":"counter","records":1000}},
  "training":{"workers":1,"batch_size":1,"epochs":1,"loss":"none","metric":"none"},
  "optimizer":{"type":"sgd","reference_batch":1,"learning_rate":{"base":1}}})";

class ServerTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kElements = 300;
  static constexpr std::uint32_t kShards = 4;

  ServerTest() {
    auto opened = net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kRouter, {});
    PS_CHECK(opened.ok());
    coordinator_ = std::move(opened).value();
    coordinator_->OnReceive([this](net::ZmqSocket::Frames&& frames) {
      PS_CHECK(frames.size() == 2, frames.size());
      const auto* data = static_cast<const std::byte*>(frames[1].data());
      auto message = control::Decode({data, frames[1].size()});
      PS_CHECK(message.ok());
      identity_ = frames[0].to_string();
      received_.push_back(std::move(message).value());
    });
    endpoint_ = coordinator_->Bind("tcp://127.0.0.1:*").value();
    StartServer("p1");
  }

  void StartServer(const std::string& procid) {
    server_.reset();
    received_.clear();
    ServerConfig config;
    config.name = "server-" + procid;
    config.procid = procid;
    config.lanes = 2;
    config.rack = "left";
    config.checkpoint_dir = directory_.path();
    config.admin_port = 0;
    config.report_interval = net::Milliseconds(20);
    auto started = Server::Start(loop_, context_, config);
    PS_CHECK(started.ok(), started.ok() ? "" : started.error().message);
    server_ = std::move(started).value();
    procid_ = procid;
    server_->SetLeader(endpoint_);
    const auto registration = Wait(control::Body::RegisterServer);
    PS_CHECK(registration.has_value());
    registration_ = control::Clone(*registration->body.AsRegisterServer());
    control::WelcomeT welcome;
    welcome.leader_epoch = 1;
    welcome.coordinator = "test";
    welcome.heartbeat_ms = 60'000;
    Tell(std::move(welcome));
    PS_CHECK(loop_.RunUntil([&] { return server_->registered(); }, net::Milliseconds(5000)));
  }

  template <typename BodyT>
  void Tell(BodyT body) {
    const std::vector<std::byte> bytes =
        control::Encode(control::Make(std::move(body), 0, /*leader_epoch=*/1));
    net::ZmqSocket::Frames frames;
    frames.push_back(net::CopyFrame(identity_.data(), identity_.size()));
    frames.push_back(net::CopyFrame(bytes.data(), bytes.size()));
    PS_CHECK(coordinator_->Send(std::move(frames)).ok());
  }

  // The next message of that kind; those before it are forgotten.
  std::optional<control::MessageT> Wait(control::Body type, int timeout_ms = 5000) {
    std::optional<control::MessageT> found;
    loop_.RunUntil(
        [&] {
          while (!found.has_value() && !received_.empty()) {
            if (received_.front().body.type == type) found = std::move(received_.front());
            received_.pop_front();
          }
          return found.has_value();
        },
        net::Milliseconds(timeout_ms));
    return found;
  }
  // Waits until a report says that all shards are in this state under this epoch.
  bool WaitForShards(wire::Code state, std::uint32_t epoch, std::uint64_t job = 1) {
    for (int attempt = 0; attempt < 200; ++attempt) {
      const auto message = Wait(control::Body::ServerReport);
      if (!message.has_value()) return false;
      const auto& report = *message->body.AsServerReport();
      const bool all =
          std::all_of(report.shards.begin(), report.shards.end(), [&](const auto& shard) {
            return shard->state == static_cast<std::uint8_t>(state) && shard->epoch == epoch;
          });
      if (report.job == job && report.shards.size() == kShards && all) return true;
    }
    return false;
  }
  // Runs the loop while a worker waits for its answer: the worker's socket needs no loop.
  std::optional<TestReply> Ask(LaneClient& client, const TestMessage& message) {
    client.Send(message);
    // The answer may wait for what the coordinator said: the server's loop must go on meanwhile.
    std::optional<TestReply> reply;
    for (int turn = 0; turn < 1000 && !reply.has_value(); ++turn) {
      loop_.RunUntil([] { return false; }, net::Milliseconds(1));
      reply = client.Receive(5);
    }
    return reply;
  }

  control::MapT MakeMap(std::uint64_t version, std::uint32_t epoch,
                        std::uint64_t restore_round = 0) const {
    control::MapT map;
    map.version = version;
    auto server = std::make_unique<control::ServerEntryT>();
    server->name = "s";
    server->procid = procid_;
    server->lanes = registration_.lanes;
    map.servers.push_back(std::move(server));
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      auto entry = std::make_unique<control::ShardEntryT>();
      entry->lane = static_cast<std::uint16_t>(shard % 2);
      entry->epoch = epoch;
      entry->lineage = epoch;
      entry->restore_round = restore_round;
      map.shards.push_back(std::move(entry));
    }
    return map;
  }
  static control::LiveSetT MakeLive(std::uint64_t version) {
    control::LiveSetT live;
    live.version = version;
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->incarnation = 11;
    live.workers.push_back(std::move(worker));
    return live;
  }
  control::JobStartT MakeStart(std::uint64_t job = 1, std::uint64_t restore_round = 0) const {
    control::JobStartT start;
    start.job = job;
    start.name = "test";
    start.spec_json = kSpec;
    start.layout = std::make_unique<control::LayoutT>(
        MakeLayoutMessage({{TableRule::Sgd, std::vector<std::uint32_t>(kShards, kElements)}}));
    start.data = std::make_unique<control::DataInfoT>();
    start.data->records = 1000;
    start.map = std::make_unique<control::MapT>(MakeMap(1, 1, restore_round));
    start.live = std::make_unique<control::LiveSetT>(MakeLive(1));
    start.checkpoint_dir = "job-" + std::to_string(job);
    if (restore_round != 0) start.restore = "job-1/ckpt-" + std::to_string(restore_round);
    start.restore_job = restore_round != 0 ? 1 : 0;
    return start;
  }

  // One client per lane; shard s lives on lane s % 2.
  void Connect() {
    clients_.clear();
    for (const std::string& lane : server_->lane_endpoints()) {
      clients_.push_back(std::make_unique<LaneClient>(context_, lane));
    }
  }
  void InitAll() {
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      TestMessage init(wire::Kind::Init, 0, 11);
      init.Segment(shard, 1, ConstantShard(layout_, ShardId(shard), 0));
      const auto reply = Ask(*clients_[shard % 2], init);
      ASSERT_TRUE(reply.has_value());
      ASSERT_EQ(reply->kind(), wire::Kind::InitReply);
      ASSERT_EQ(reply->CodeOf(shard), wire::Code::Applied);
    }
  }
  void PushAll(std::uint64_t clock) {
    for (std::uint32_t lane = 0; lane < 2; ++lane) {
      TestMessage push(wire::Kind::Push, 0, 11);
      push.Clock(clock).Flags(wire::kCoversLane);
      push.Segment(lane, 1, SparseBlock(lane, kElements, {5}, {-1}), 1'000'000);
      const auto reply = Ask(*clients_[lane], push);
      ASSERT_TRUE(reply.has_value());
      ASSERT_TRUE(reply->head.segments.empty());
    }
  }
  void Markers(std::uint64_t round, std::uint64_t clock, wire::Kind expected) {
    for (std::uint32_t lane = 0; lane < 2; ++lane) {
      const auto reply =
          Ask(*clients_[lane], TestMessage(wire::Kind::Marker, 0, 11).Request(round).Clock(clock));
      ASSERT_TRUE(reply.has_value());
      ASSERT_EQ(reply->kind(), expected);
    }
  }
  control::RoundBeginT MakeRound(std::uint64_t round) const {
    control::RoundBeginT begin;
    begin.job = 1;
    begin.round = round;
    begin.live_version = 1;
    begin.map_version = 1;
    begin.directory = "job-1/ckpt-" + std::to_string(round);
    return begin;
  }
  // Brings a round to its commit and returns what was prepared.
  control::PreparedT Checkpoint(std::uint64_t round, std::uint64_t clock) {
    Tell(MakeRound(round));
    Markers(round, clock, wire::Kind::MarkerReply);
    const auto prepared = Wait(control::Body::Prepared);
    PS_CHECK(prepared.has_value());
    control::PreparedT result = control::Clone(*prepared->body.AsPrepared());

    checkpoint::Manifest manifest;
    manifest.job = JobId(1);
    manifest.job_name = "test";
    manifest.round = Round(round);
    manifest.program_version = "1";
    manifest.spec_json = kSpec;
    checkpoint::ManifestTable table;
    table.name = "parameters";
    table.elements = std::uint64_t{kShards} * kElements;
    manifest.tables.push_back(table);
    manifest.shards.resize(kShards);
    for (const auto& shard : result.shards) {
      checkpoint::ManifestShard& stored = manifest.shards[shard->shard];
      stored = {ShardId(shard->shard), procid_,
                Epoch(shard->epoch),   shard->version,
                shard->bytes,          shard->digest,
                shard->values_digest,  shard->rows,
                shard->state_bytes,    {}};
      for (const auto& base : shard->bases) stored.bases.emplace_back(base->round);
    }
    control::WriteManifestT write;
    write.job = 1;
    write.round = round;
    write.directory = "job-1/ckpt-" + std::to_string(round);
    write.manifest = checkpoint::ToJson(manifest).value();
    write.parts.push_back(std::make_unique<control::PartNameT>());
    write.parts.back()->name = procid_;
    Tell(std::move(write));
    PS_CHECK(Wait(control::Body::ManifestWritten).has_value());
    control::RoundCommittedT committed;
    committed.job = 1;
    committed.round = round;
    committed.keep.push_back(std::make_unique<control::KeptRoundT>());
    committed.keep.back()->round = round;
    Tell(std::move(committed));
    return result;
  }

  const LayoutView layout_ =
      MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(kShards, kElements)}}, kShards);
  const TemporaryDirectory directory_;
  net::Context context_;
  net::Loop loop_;
  std::unique_ptr<net::ZmqSocket> coordinator_;
  std::string endpoint_;
  std::string identity_;
  std::deque<control::MessageT> received_;
  std::string procid_;
  control::RegisterServerT registration_;
  std::unique_ptr<Server> server_;
  std::vector<std::unique_ptr<LaneClient>> clients_;
};

TEST_F(ServerTest, RegistersWithItsLanesAndReportsItsShards) {
  EXPECT_EQ(registration_.procid, "p1");
  EXPECT_EQ(registration_.lanes, server_->lane_endpoints());
  EXPECT_EQ(registration_.lanes.size(), 2u);
  EXPECT_EQ(registration_.rack, "left");
  Tell(MakeStart());
  EXPECT_TRUE(WaitForShards(wire::Code::Blank, 1));
  Connect();
  InitAll();
  EXPECT_TRUE(WaitForShards(wire::Code::Applied, 1));
}

TEST_F(ServerTest, AMapForAnotherProcessOfTheSameNameGivesItNothing) {
  control::JobStartT start = MakeStart();
  start.map->servers[0]->procid = "p0";
  Tell(std::move(start));
  const auto report = Wait(control::Body::ServerReport);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->body.AsServerReport()->shards.empty());
}

TEST_F(ServerTest, ACheckpointIsWrittenCommittedAndRestoredByAnotherServer) {
  Tell(MakeStart());
  ASSERT_TRUE(WaitForShards(wire::Code::Blank, 1));
  Connect();
  InitAll();
  for (std::uint64_t clock = 1; clock <= 3; ++clock) PushAll(clock);
  const control::PreparedT prepared = Checkpoint(1, 3);
  ASSERT_EQ(prepared.shards.size(), kShards);
  EXPECT_EQ(prepared.shards[0]->version, 3u);
  EXPECT_EQ(prepared.shards[0]->samples, 3u);
  EXPECT_TRUE(fs::exists(directory_.path() / "job-1" / "ckpt-1" / "p1" / "MANIFEST.json"));
  PushAll(4);
  Checkpoint(2, 4);
  // Deleting the old round is not announced; it ends before the next task of the same thread.
  Tell(MakeRound(3));
  Markers(3, 4, wire::Kind::MarkerReply);
  ASSERT_TRUE(Wait(control::Body::Prepared).has_value());
  EXPECT_FALSE(fs::exists(directory_.path() / "job-1" / "ckpt-1"));

  StartServer("p2");
  Tell(MakeStart(1, 2));
  ASSERT_TRUE(WaitForShards(wire::Code::Applied, 1));
  Connect();
  const auto hello = Ask(*clients_[0], TestMessage(wire::Kind::Hello, 0, 11));
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->Find(0)->version(), 4u) << "the watermark came with the image";
  TestMessage pull(wire::Kind::Pull, 0, 11);
  pull.Flags(wire::kPullFp32).Segment(0, 1);
  const auto reply = Ask(*clients_[0], pull);
  ASSERT_TRUE(reply.has_value());
  std::vector<std::vector<float>> values(kShards);
  ApplyPulled(layout_, reply->PayloadOf(0), values);
  EXPECT_EQ(values[0][5], 4);
  EXPECT_EQ(values[0][6], 0);
}

TEST_F(ServerTest, AnotherJobTakesTheValuesAloneFromACheckpoint) {
  Tell(MakeStart());
  ASSERT_TRUE(WaitForShards(wire::Code::Blank, 1));
  Connect();
  InitAll();
  PushAll(1);
  Checkpoint(1, 1);
  control::JobDropT drop;
  drop.job = 1;
  Tell(std::move(drop));
  Tell(MakeStart(2, 1));
  ASSERT_TRUE(WaitForShards(wire::Code::Applied, 1, 2));
  const auto hello = Ask(*clients_[0], TestMessage(wire::Kind::Hello, 0, 11, 2));
  ASSERT_TRUE(hello.has_value());
  ASSERT_NE(hello->Find(0), nullptr);
  EXPECT_EQ(hello->Find(0)->version(), 0u);
  const auto other = Ask(*clients_[0], TestMessage(wire::Kind::Hello, 0, 11, 1));
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(other->code(), wire::Code::UnknownJob);
}

TEST_F(ServerTest, ACheckpointThatIsNotThereIsReportedAndToldAgainToANewLeader) {
  Tell(MakeStart(1, 9));
  const auto failed = Wait(control::Body::RestoreFailed, 10'000);
  ASSERT_TRUE(failed.has_value());
  EXPECT_EQ(failed->body.AsRestoreFailed()->round, 9u);
  EXPECT_FALSE(failed->body.AsRestoreFailed()->message.empty());
  control::WelcomeT welcome;
  welcome.leader_epoch = 1;
  received_.clear();
  Tell(std::move(welcome));
  EXPECT_TRUE(Wait(control::Body::RestoreFailed).has_value());
  // A map that starts the shards blank again ends the complaint.
  control::JobUpdateT update;
  update.job = 1;
  update.map = std::make_unique<control::MapT>(MakeMap(2, 2));
  Tell(std::move(update));
  EXPECT_TRUE(WaitForShards(wire::Code::Blank, 2));
}

TEST_F(ServerTest, AnAbortedRoundLeavesNothingBehind) {
  Tell(MakeStart());
  ASSERT_TRUE(WaitForShards(wire::Code::Blank, 1));
  Connect();
  InitAll();
  Tell(MakeRound(1));
  Markers(1, 0, wire::Kind::MarkerReply);
  ASSERT_TRUE(Wait(control::Body::Prepared).has_value());
  ASSERT_TRUE(fs::exists(directory_.path() / "job-1" / "ckpt-1" / "p1"));
  control::RoundAbortT abort;
  abort.job = 1;
  abort.round = 1;
  abort.reason = "test";
  Tell(std::move(abort));
  Checkpoint(2, 0);
  EXPECT_FALSE(fs::exists(directory_.path() / "job-1" / "ckpt-1"));
  Markers(1, 0, wire::Kind::Nack);
}

TEST_F(ServerTest, WhatAnotherServerWroteIsCopiedAndGoesWithAnAbortedRound) {
  const TemporaryDirectory other;
  checkpoint::ShardImage image;
  image.job = JobId(9);
  image.round = Round(4);
  image.block_elements = {100};
  image.values.assign(100, 1.5f);
  const auto write = [&](const std::string& round) {
    auto writer = checkpoint::Writer::Open(other.path() / "job-9" / round / "them", 0);
    PS_CHECK(writer.ok() && writer->Add(image).ok() && writer->Finish().ok(), round);
  };
  write("ckpt-3");
  write("ckpt-4");
  const auto service =
      checkpoint::FileService::Start(context_, other.path(), "tcp://127.0.0.1:*").value();
  // Also of a job of which this server has nothing.
  const auto order = [&](const std::string& part) {
    control::CopyPartT copy;
    copy.job = 9;
    copy.round = 4;
    copy.directory = "job-9/ckpt-4";
    copy.part = part;
    copy.bases.push_back(std::make_unique<control::KeptRoundT>());
    copy.bases.back()->round = 3;
    copy.source = std::make_unique<control::FileSourceT>();
    copy.source->endpoint = service->endpoint();
    return copy;
  };
  const auto here = [&](const std::string& round) {
    return fs::exists(directory_.path() / "job-9" / round / "them" / checkpoint::kSealFile);
  };
  Tell(order("them"));
  ASSERT_TRUE(Wait(control::Body::PartCopied).has_value());
  EXPECT_TRUE(here("ckpt-3"));
  EXPECT_TRUE(here("ckpt-4"));
  for (const std::string part : {"nobody", "", "..", "../../job-9"}) {
    Tell(order(part));
    EXPECT_TRUE(Wait(control::Body::PartCopyFailed).has_value()) << part;
  }
  control::RoundAbortT abort;
  abort.job = 9;
  abort.round = 3;  // of an older round: nothing
  Tell(control::RoundAbortT(abort));
  abort.round = 4;
  Tell(std::move(abort));
  EXPECT_TRUE(loop_.RunUntil([&] { return !here("ckpt-4"); }, net::Milliseconds(5000)));
  EXPECT_TRUE(here("ckpt-3")) << "what it builds on counts";
}

TEST_F(ServerTest, ARoundThatCannotBeWrittenFailsAndTheNextSucceeds) {
  Tell(MakeStart());
  ASSERT_TRUE(WaitForShards(wire::Code::Blank, 1));
  Connect();
  InitAll();
  control::RoundBeginT outside = MakeRound(1);
  outside.directory = "../escape";
  Tell(std::move(outside));
  const auto denied = Wait(control::Body::PrepareFailed);
  ASSERT_TRUE(denied.has_value());
  EXPECT_EQ(denied->body.AsPrepareFailed()->round, 1u);
  // Something else is in the way of the round's directory.
  fs::create_directories(directory_.path() / "job-1" / "ckpt-2" / "p1");
  Tell(MakeRound(2));
  Markers(2, 0, wire::Kind::MarkerReply);
  ASSERT_TRUE(Wait(control::Body::PrepareFailed).has_value());
  control::RoundBeginT stale = MakeRound(3);
  stale.map_version = 77;
  Tell(std::move(stale));
  ASSERT_TRUE(Wait(control::Body::PrepareFailed).has_value());
  EXPECT_EQ(Checkpoint(4, 0).shards.size(), kShards);
}

TEST_F(ServerTest, AnUnknownJobCannotTakePartInARound) {
  Tell(MakeRound(1));
  EXPECT_TRUE(Wait(control::Body::PrepareFailed).has_value());
}

TEST_F(ServerTest, AJobThatMakesNoSenseIsNotTaken) {
  control::JobStartT bad_spec = MakeStart();
  bad_spec.spec_json = "{";
  Tell(std::move(bad_spec));
  control::JobStartT bad_map = MakeStart(2);
  bad_map.map->shards[0]->server = 9;
  Tell(std::move(bad_map));
  control::JobStartT no_layout = MakeStart(3);
  no_layout.layout.reset();
  Tell(std::move(no_layout));
  control::JobStartT other_rows = MakeStart(5);
  other_rows.layout->row_tables.push_back(std::make_unique<control::RowTableInfoT>());
  other_rows.layout->row_tables[0]->width = 4;  // the specification has none
  Tell(std::move(other_rows));
  Tell(MakeStart(4));
  EXPECT_TRUE(WaitForShards(wire::Code::Blank, 1, 4)) << "the good one after them is";
}

TEST_F(ServerTest, TheAdminEndpointTellsHealthAndMetrics) {
  const std::string url = "http://" + server_->admin_endpoint();
  const auto get = [&](const std::string& method, const std::string& path) {
    std::optional<Result<net::HttpReply>> reply;
    std::thread caller([&] {
      auto answer = net::HttpCall(method, url + path, "", net::Milliseconds(5000));
      loop_.Post([&reply, answer = std::move(answer)] { reply = answer; });
    });
    loop_.RunUntil([&] { return reply.has_value(); }, net::Milliseconds(6000));
    caller.join();
    PS_CHECK(reply.has_value() && reply->ok());
    return reply->value();
  };
  EXPECT_EQ(get("GET", "/healthz").status, 200);
  const net::HttpReply metrics = get("GET", "/metrics");
  EXPECT_EQ(metrics.status, 200);
  EXPECT_NE(metrics.body.find("ps_server_registered 1"), std::string::npos);
  EXPECT_EQ(get("GET", "/other").status, 404);
  EXPECT_EQ(get("POST", "/healthz").status, 405);
}

TEST(ServerStartTest, ACheckpointDirectoryThatCannotBeWrittenIsRefused) {
  net::Context context;
  net::Loop loop;
  ServerConfig config;
  config.procid = "p";
  config.checkpoint_dir = "/proc/nothing/here";
  const auto server = Server::Start(loop, context, config);
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace ps::server::testing
