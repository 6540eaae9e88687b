#include "common/zookeeper/member.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/zookeeper/leader.h"
#include "tests/common/zookeeper/fixture.h"

namespace ps::zk {
namespace {

class EphemeralNodeTest : public ZooKeeperTest {
 protected:
  bool Present(const std::unique_ptr<EphemeralNode>& node) {
    return RunUntil(io_, [&] { return node->path().has_value(); });
  }
};

TEST_F(EphemeralNodeTest, AFixedNodeIsCreatedWithItsParentsAndDeletedAtTheEnd) {
  const auto session = Open();
  std::vector<std::optional<std::string>> told;
  auto node =
      EphemeralNode::Fixed(*session, "/servers/s-1", "data",
                           [&](const std::optional<std::string>& path) { told.push_back(path); });
  ASSERT_TRUE(Present(node));
  EXPECT_THAT(told, testing::ElementsAre("/servers/s-1"));
  const auto value = Get(*session, "/servers/s-1");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(value->data, "data");
  EXPECT_EQ(value->ephemeral_owner, session->session_id());
  node.reset();
  EXPECT_FALSE(*Exists(*session, "/servers/s-1"));
}

TEST_F(EphemeralNodeTest, ANodeMadeBeforeTheConnectionIsCreatedWithIt) {
  const auto session = Prepare(SharedServer().address(), milliseconds(10'000));
  const auto node = EphemeralNode::Fixed(*session, "/servers/s-1", "data");
  EXPECT_FALSE(node->path().has_value());
  EXPECT_TRUE(Present(node));
}

TEST_F(EphemeralNodeTest, ANewSessionGetsTheNodeAgain) {
  const auto session = Open();
  std::vector<std::optional<std::string>> told;
  const auto fixed =
      EphemeralNode::Fixed(*session, "/servers/s-1", "data",
                           [&](const std::optional<std::string>& path) { told.push_back(path); });
  const auto sequential = EphemeralNode::Sequential(*session, "/coordinators", "c-", "data");
  ASSERT_TRUE(Present(fixed) && Present(sequential));
  const std::string old_path = *sequential->path();
  Expire(*session, SharedServer().address());
  ASSERT_TRUE(Present(fixed) && Present(sequential));
  EXPECT_THAT(told, testing::ElementsAre("/servers/s-1", std::nullopt, "/servers/s-1"));
  EXPECT_EQ(Get(*session, "/servers/s-1")->ephemeral_owner, session->session_id());
  EXPECT_NE(*sequential->path(), old_path);
  EXPECT_EQ(Children(*session, "/coordinators")->size(), 1u);
}

TEST_F(EphemeralNodeTest, ANodeThatSomebodyDeletesComesBack) {
  const auto session = Open();
  const auto other = Open();
  std::vector<std::optional<std::string>> told;
  const auto node =
      EphemeralNode::Fixed(*session, "/servers/s-1", "data",
                           [&](const std::optional<std::string>& path) { told.push_back(path); });
  ASSERT_TRUE(Present(node));
  ASSERT_TRUE(Delete(*other, "/servers/s-1").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return told.size() == 3; }));
  EXPECT_TRUE(*Exists(*other, "/servers/s-1"));
}

TEST_F(EphemeralNodeTest, ANodeOfAForeignSessionIsLeftAloneUntilItGoes) {
  const auto session = Open();
  auto other = Open();
  const auto theirs = EphemeralNode::Fixed(*other, "/servers/s-1", "theirs");
  ASSERT_TRUE(Present(theirs));
  const auto ours = EphemeralNode::Fixed(*session, "/servers/s-1", "ours");
  RunFor(io_, milliseconds(300));
  EXPECT_FALSE(ours->path().has_value());
  EXPECT_EQ(Get(*session, "/servers/s-1")->data, "theirs");
  other->Close();
  ASSERT_TRUE(Present(ours));
  EXPECT_EQ(Get(*session, "/servers/s-1")->data, "ours");
}

TEST_F(EphemeralNodeTest, AFixedNodeOfTheSameSessionIsTakenOverWithNewData) {
  const auto session = Open();
  ASSERT_TRUE(Ensure(*session, "/servers").ok());
  ASSERT_TRUE(Create(*session, "/servers/s-1", "old", CreateMode::kEphemeral).ok());
  const auto node = EphemeralNode::Fixed(*session, "/servers/s-1", "new");
  ASSERT_TRUE(Present(node));
  EXPECT_EQ(Get(*session, "/servers/s-1")->data, "new");
}

TEST_F(EphemeralNodeTest, SequentialNodesHaveGrowingNumbersAndADestroyedOneLeavesNothing) {
  const auto session = Open();
  auto first = EphemeralNode::Sequential(*session, "/c", "c-", "1");
  ASSERT_TRUE(Present(first));
  const auto second = EphemeralNode::Sequential(*session, "/c", "c-", "2");
  ASSERT_TRUE(Present(second));
  EXPECT_LT(*SequenceOf(*first->path()), *SequenceOf(*second->path()));
  EXPECT_EQ(LowestSequence(*Children(*session, "/c")), NameOf(*first->path()));
  first.reset();
  EXPECT_EQ(Children(*session, "/c")->size(), 1u);
  // Its creation is still on its way when it is destroyed.
  for (int i = 0; i < 20; ++i) {
    auto brief = EphemeralNode::Sequential(*session, "/c", "c-", "brief");
    for (int k = 0; k < i; ++k) io_.run_one_for(milliseconds(5));
    brief.reset();
  }
  EXPECT_TRUE(RunUntil(io_, [&] { return Children(*session, "/c")->size() == 1; }));
}

// The server stops while the creation may be under way; when it goes on it carries out what the
// client has given up.
TEST_F(EphemeralNodeTest, AnUnansweredCreationLeavesNoSecondNode) {
  const auto server = OwnServer();
  const auto session = Open(server->address(), milliseconds(900));
  ASSERT_TRUE(Ensure(*session, "/c").ok());
  for (int i = 0; i < 8; ++i) {
    auto node = EphemeralNode::Sequential(*session, "/c", "c-", "data");
    for (int k = 0; k < i; ++k) io_.run_one_for(milliseconds(2));
    server->Stop();
    RunUntil(io_, [&] { return session->state() != State::kConnected; });
    server->Continue();
    ASSERT_TRUE(RunUntil(io_, [&] { return session->connected() && node->path(); }));
    EXPECT_TRUE(RunUntil(io_, [&] {
      const auto names = Children(*session, "/c");
      return names.ok() && names->size() == 1 && node->path() &&
             names->front() == NameOf(*node->path());
    }));
    node.reset();
    ASSERT_TRUE(RunUntil(io_, [&] {
      const auto names = Children(*session, "/c");
      return names.ok() && names->empty();
    }));
  }
}

TEST(SequenceTest, OnlyNamesThatEndInTenDigitsHaveANumber) {
  EXPECT_EQ(SequenceOf("c-0000000012"), 12);
  EXPECT_EQ(SequenceOf("2147483647"), 2147483647);
  EXPECT_EQ(SequenceOf("c-000000001"), std::nullopt);
  EXPECT_EQ(SequenceOf("c-00000000x1"), std::nullopt);
  EXPECT_EQ(SequenceOf("c--000000001"), std::nullopt);
  EXPECT_EQ(SequenceOf(""), std::nullopt);
  EXPECT_EQ(LowestSequence({"c-z-0000000003", "c-a-0000000005", "other"}), "c-z-0000000003");
  EXPECT_EQ(LowestSequence({"other"}), std::nullopt);
}

TEST(ControlEndpointTest, IsReadFromTheLeadersNode) {
  EXPECT_EQ(ControlEndpointOf(R"({"id":"a","control":"tcp://h:1","http":"h:2"})"), "tcp://h:1");
  EXPECT_EQ(ControlEndpointOf(R"({"id":"a"})"), "");
  EXPECT_EQ(ControlEndpointOf(R"({"control":5})"), "");
  EXPECT_EQ(ControlEndpointOf("[]"), "");
  EXPECT_EQ(ControlEndpointOf("\xff"), "");
}

}  // namespace
}  // namespace ps::zk
