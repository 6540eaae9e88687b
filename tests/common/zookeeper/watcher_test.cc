#include "common/zookeeper/watcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/common/zookeeper/fixture.h"

namespace ps::zk {
namespace {

class WatcherTest : public ZooKeeperTest {};

TEST_F(WatcherTest, ANodeIsSeenAbsentCreatedChangedAndDeleted) {
  const auto session = Open();
  const auto other = Open();
  std::vector<std::optional<std::string>> seen;
  const NodeWatcher watcher(*session, "/p/a", [&](const std::optional<NodeValue>& value) {
    seen.push_back(value ? std::optional<std::string>(value->data) : std::nullopt);
  });
  const auto next = [&](std::size_t count) {
    return RunUntil(io_, [&] { return seen.size() >= count; });
  };
  ASSERT_TRUE(next(1));
  ASSERT_TRUE(Ensure(*other, "/p").ok());
  ASSERT_TRUE(Create(*other, "/p/a", "1").ok());
  ASSERT_TRUE(next(2));
  ASSERT_TRUE(Set(*other, "/p/a", "2").ok());
  ASSERT_TRUE(next(3));
  ASSERT_TRUE(Delete(*other, "/p/a").ok());
  ASSERT_TRUE(next(4));
  EXPECT_THAT(seen, testing::ElementsAre(std::nullopt, "1", "2", std::nullopt));
}

TEST_F(WatcherTest, TheFinalStateIsSeenAfterABurst) {
  const auto session = Open();
  const auto other = Open();
  std::optional<std::string> seen;
  int calls = 0;
  const NodeWatcher watcher(*session, "/a", [&](const std::optional<NodeValue>& value) {
    seen = value ? std::optional<std::string>(value->data) : std::nullopt;
    ++calls;
  });
  int open = 0;
  const auto count = [&](const auto&) { --open; };
  for (int i = 0; i < 300; ++i) {
    open += 3;
    other->Create("/a", "new", CreateMode::kPersistent, count);
    other->Set("/a", std::to_string(i), kAnyVersion, count);
    if (i < 299) {
      other->Delete("/a", kAnyVersion, count);
    } else {
      --open;
    }
  }
  ASSERT_TRUE(RunUntil(io_, [&] { return open == 0; }));
  EXPECT_TRUE(RunUntil(io_, [&] { return seen == "299"; }));
  EXPECT_LE(calls, 900);
}

TEST_F(WatcherTest, TheSameValueIsNotToldTwice) {
  const auto session = Open();
  ASSERT_TRUE(Create(*session, "/a", "1").ok());
  int calls = 0;
  const NodeWatcher watcher(*session, "/a", [&](const std::optional<NodeValue>&) { ++calls; });
  ASSERT_TRUE(RunUntil(io_, [&] { return calls == 1; }));
  Expire(*session, SharedServer().address());
  RunFor(io_, milliseconds(300));
  EXPECT_EQ(calls, 1);
}

TEST_F(WatcherTest, ChangesOfTheTimeBetweenTwoSessionsAreSeen) {
  const auto session = Open();
  const auto other = Open();
  ASSERT_TRUE(Create(*other, "/a", "1").ok());
  ASSERT_TRUE(Ensure(*other, "/d/x").ok());
  std::string seen;
  ChildrenWatcher::Children children;
  const NodeWatcher node(*session, "/a", [&](const std::optional<NodeValue>& value) {
    seen = value ? value->data : "-";
  });
  const ChildrenWatcher list(*session, "/d",
                             [&](const ChildrenWatcher::Children& value) { children = value; });
  ASSERT_TRUE(RunUntil(io_, [&] { return seen == "1" && children.size() == 1; }));
  Expire(*session, SharedServer().address());
  ASSERT_TRUE(Set(*other, "/a", "2").ok());
  ASSERT_TRUE(Set(*other, "/d/x", "changed").ok());
  ASSERT_TRUE(Create(*other, "/d/y", "").ok());
  EXPECT_TRUE(RunUntil(io_, [&] { return seen == "2" && children.size() == 2; }));
  EXPECT_TRUE(RunUntil(io_, [&] { return children["x"].data == "changed"; }));
}

TEST_F(WatcherTest, ChildrenOfAMissingNodeAreNoneUntilThereAreSome) {
  const auto session = Open();
  const auto other = Open();
  std::vector<std::size_t> sizes;
  const ChildrenWatcher watcher(*session, "/d", [&](const ChildrenWatcher::Children& children) {
    sizes.push_back(children.size());
  });
  ASSERT_TRUE(RunUntil(io_, [&] { return sizes.size() == 1; }));
  ASSERT_TRUE(Ensure(*other, "/d/one").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return sizes.back() == 1; }));
  ASSERT_TRUE(Delete(*other, "/d/one").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return sizes.back() == 0; }));
  ASSERT_TRUE(Delete(*other, "/d").ok());
  ASSERT_TRUE(Ensure(*other, "/d/two").ok());
  EXPECT_TRUE(RunUntil(io_, [&] { return sizes.back() == 1; }));
}

TEST_F(WatcherTest, TheFinalChildrenAndTheirDataAreSeenAfterABurst) {
  const auto session = Open();
  const auto other = Open();
  ChildrenWatcher::Children seen;
  const ChildrenWatcher watcher(
      *session, "/d", [&](const ChildrenWatcher::Children& children) { seen = children; });
  ASSERT_TRUE(Ensure(*other, "/d").ok());
  int open = 0;
  const auto count = [&](const auto&) { --open; };
  std::map<std::string, std::string> expected;
  for (int i = 0; i < 400; ++i) {
    const std::string name = "n" + std::to_string(i % 20);
    const std::string data = std::to_string(i);
    open += 2;
    if (i % 3 == 0) {
      other->Delete("/d/" + name, kAnyVersion, count);
      expected.erase(name);
      --open;
      continue;
    }
    other->Create("/d/" + name, data, CreateMode::kPersistent, count);
    other->Set("/d/" + name, data, kAnyVersion, count);
    expected[name] = data;
  }
  ASSERT_TRUE(RunUntil(io_, [&] { return open == 0; }));
  const auto same = [&] {
    if (seen.size() != expected.size()) return false;
    return std::all_of(expected.begin(), expected.end(), [&](const auto& entry) {
      return seen.count(entry.first) != 0 && seen[entry.first].data == entry.second;
    });
  };
  EXPECT_TRUE(RunUntil(io_, same));
}

TEST_F(WatcherTest, ARestartedServerIsReadAgain) {
  const auto server = OwnServer();
  const auto session = Open(server->address(), milliseconds(30'000));
  std::string seen;
  const NodeWatcher watcher(*session, "/a", [&](const std::optional<NodeValue>& value) {
    seen = value ? value->data : "-";
  });
  ASSERT_TRUE(RunUntil(io_, [&] { return seen == "-"; }));
  server->Kill();
  ASSERT_TRUE(RunUntil(io_, [&] { return !session->connected(); }));
  EXPECT_EQ(seen, "-");
  ASSERT_TRUE(server->Restart().ok());
  const auto other = Open(server->address(), milliseconds(30'000));
  ASSERT_TRUE(Create(*other, "/a", "1").ok());
  EXPECT_TRUE(RunUntil(io_, [&] { return seen == "1"; }));
}

TEST_F(WatcherTest, AWatcherMayBeDestroyedInItsCallback) {
  const auto session = Open();
  ASSERT_TRUE(Ensure(*session, "/d/x").ok());
  std::unique_ptr<NodeWatcher> node;
  std::unique_ptr<ChildrenWatcher> children;
  int calls = 0;
  node = std::make_unique<NodeWatcher>(*session, "/d", [&](const std::optional<NodeValue>&) {
    node.reset();
    ++calls;
  });
  children = std::make_unique<ChildrenWatcher>(*session, "/d",
                                               [&](const ChildrenWatcher::Children& value) {
                                                 children.reset();
                                                 calls += static_cast<int>(value.size());
                                               });
  ASSERT_TRUE(RunUntil(io_, [&] { return calls == 2; }));
  ASSERT_TRUE(Set(*session, "/d", "1").ok());
  RunFor(io_, milliseconds(100));
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace ps::zk
