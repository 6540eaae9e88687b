// Counts what a lane's thread allocates. A program of its own: it replaces operator new.
#include <dlfcn.h>
#include <execinfo.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <new>
#include <string>

#include "common/net/zmq_socket.h"
#include "ps-server/shell/lane.h"
#include "tests/ps-server/shell/lane_client.h"

namespace {

// Of this thread; read by the test's thread through its address.
thread_local std::atomic<std::uint64_t> allocations{0};

// The first allocation that should not have been: its stack, for the failure's message.
thread_local bool on_lane = false;
std::atomic<bool> watched{false};
std::array<void*, 24> culprit{};
std::atomic<int> culprit_frames{0};

// libzmq's own buffers are not ours to count. An address in no library is our own code.
bool IsLibzmq(void* caller) {
  Dl_info info;
  return ::dladdr(caller, &info) != 0 && info.dli_fname != nullptr &&
         std::strstr(info.dli_fname, "libzmq") != nullptr;
}

void* Allocate(std::size_t bytes, std::size_t alignment, void* caller) {
  if (!IsLibzmq(caller)) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (on_lane && watched.exchange(false)) {
      culprit_frames = ::backtrace(culprit.data(), static_cast<int>(culprit.size()));
    }
  }
  void* at = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    at = std::malloc(bytes > 0 ? bytes : 1);
  } else if (::posix_memalign(&at, alignment, bytes) != 0) {
    at = nullptr;
  }
  if (at == nullptr) std::abort();
  return at;
}

}  // namespace

void* operator new(std::size_t bytes) { return Allocate(bytes, 1, __builtin_return_address(0)); }
void* operator new[](std::size_t bytes) { return Allocate(bytes, 1, __builtin_return_address(0)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes, 1, __builtin_return_address(0));
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes, 1, __builtin_return_address(0));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
void operator delete(void* at) noexcept { std::free(at); }
void operator delete[](void* at) noexcept { std::free(at); }
void operator delete(void* at, std::size_t) noexcept { std::free(at); }
void operator delete[](void* at, std::size_t) noexcept { std::free(at); }
void operator delete(void* at, std::align_val_t) noexcept { std::free(at); }
void operator delete[](void* at, std::align_val_t) noexcept { std::free(at); }
void operator delete(void* at, std::size_t, std::align_val_t) noexcept { std::free(at); }
void operator delete[](void* at, std::size_t, std::align_val_t) noexcept { std::free(at); }

namespace ps::server::testing {
namespace {

constexpr std::uint32_t kElements = 60'000;
constexpr std::uint32_t kShards = 4;
constexpr std::uint32_t kRowWidth = 8;
constexpr std::size_t kRowsPushed = 20;

// Addresses for addr2line, one in a line: "" if nothing was caught.
std::string Culprit() {
  std::string text;
  const int frames = culprit_frames;
  char** names = ::backtrace_symbols(culprit.data(), frames);
  for (int i = 0; names != nullptr && i < frames; ++i) text += std::string(names[i]) + "\n";
  std::free(names);
  return text;
}

class LaneAllocationTest : public ::testing::Test {
 protected:
  LaneAllocationTest() {
    LaneOptions options;
    options.status_interval_ms = 3'600'000;  // the status is made of vectors, and is no message
    lane_ = Lane::Start(context_, options, [](LaneEvent) {}).value();
    LaneMap map;
    map.version = 1;
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      map.shards.push_back(OwnShard{ShardId(shard), Epoch(1), 1, Round()});
    }
    LiveMembers live;
    live.version = 1;
    live.members.push_back(MakeMember(0, 11));
    JobRules rules = ConstantRules(1.0);
    rules.rows = {MakeRowRules(0, kRowWidth, 1.0, OptimizerType::kAdagrad)};
    // A table that is full: it has rows that are pushed and refuses others.
    rules.rows[0].max_bytes = kShards * 50 * (kRowOverheadBytes + 2 * kRowWidth * sizeof(float));
    const JobSetup setup{JobId(1), layout_, rules, map, live};
    PS_CHECK(lane_->Post([setup](LaneCore& core) { core.SetJob(setup); }).ok());
    std::promise<std::atomic<std::uint64_t>*> counter;
    PS_CHECK(lane_
                 ->Post([&](LaneCore&) {
                   on_lane = true;
                   counter.set_value(&allocations);
                 })
                 .ok());
    counter_ = counter.get_future().get();
    client_ = std::make_unique<LaneClient>(context_, lane_->endpoint());
    TestMessage init(wire::Kind::Init, 0, 11);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      init.Segment(shard, 1, ConstantShard(layout_, ShardId(shard), 0.5f));
    }
    PS_CHECK(client_->Ask(init).has_value());
  }

  // A pull that waits for the step's push, the push, and a pull of everything.
  void SendStep() {
    ++clock_;
    TestMessage early(wire::Kind::Pull, 0, 11);
    early.Clock(clock_);
    TestMessage snapshot(wire::Kind::Pull, 0, 11);
    snapshot.Flags(wire::kPullFp32 | wire::kPullSnapshot);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      const auto keys = KeysOfShard(layout_, shard, kRowsPushed, clock_ % 64);
      early.Segment(shard, 1, AskedRows(0, keys), clock_ > 8 ? clock_ - 8 : 1);
      snapshot.Segment(shard, 1, AskedRows(0, keys));
    }
    client_->Send(early);
    const auto shard = static_cast<std::uint32_t>(clock_ % kShards);
    TestMessage push(wire::Kind::Push, 0, 11);
    Bytes bytes = SparseBlock(shard, kElements, {3, 30'000, 59'999}, {1, 2, 3});
    bytes += PushedRows(0, KeysOfShard(layout_, shard, kRowsPushed, clock_ % 64),
                        std::vector<float>(kRowsPushed * kRowWidth, 0.5F));
    push.Clock(clock_).Flags(wire::kCoversLane).Segment(shard, 1, bytes, 1'000'000);
    client_->Send(push);
    client_->Send(snapshot);
  }

  // Sends all steps before it reads the first answer.
  void Steps(int count) {
    for (int step = 0; step < count; ++step) SendStep();
    int pushes = 0;
    int pulls = 0;
    while (pushes + pulls < 3 * count) {
      const auto reply = client_->Receive();
      ASSERT_TRUE(reply.has_value()) << pushes << " pushes and " << pulls << " pulls answered";
      ++(reply->kind() == wire::Kind::PushReply ? pushes : pulls);
    }
    ASSERT_EQ(pushes, count);
  }

  const LayoutView layout_ = MakeLayout(
      {{TableRule::Sgd, std::vector<std::uint32_t>(kShards, kElements)}}, kShards, {kRowWidth});
  net::Context context_;
  std::unique_ptr<Lane> lane_;
  std::unique_ptr<LaneClient> client_;
  std::atomic<std::uint64_t>* counter_ = nullptr;
  std::uint64_t clock_ = 0;
};

TEST_F(LaneAllocationTest, PushesAndPullsCostNoneOnceTheLaneHasWarmedUp) {
  // libzmq's thread gives an answer's buffer back when it comes to it, so a machine that is busy
  // elsewhere has more of them under way than one step asks for: many of each size are made now.
  for (int round = 0; round < 300; ++round) ASSERT_NO_FATAL_FAILURE(Steps(1 + round * 7 % 12));
  const std::uint64_t before = counter_->load();
  EXPECT_GT(before, 0u) << "nothing is counted at all";
  watched = true;
  for (int step = 0; step < 500; ++step) ASSERT_NO_FATAL_FAILURE(Steps(1));
  watched = false;
  EXPECT_EQ(counter_->load() - before, 0u) << "the first by:\n" << Culprit();
}

}  // namespace
}  // namespace ps::server::testing
