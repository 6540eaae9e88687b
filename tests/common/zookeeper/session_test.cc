#include "common/zookeeper/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/zookeeper/secret.h"
#include "tests/common/zookeeper/fixture.h"

namespace ps::zk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class SessionTest : public ZooKeeperTest {};

TEST_F(SessionTest, MalformedAddressesAreRefused) {
  for (const char* hosts : {"", "host", "host:", ":1", "host:0", "host:70000", "host:12x",
                            "a:1,,b:2", "a:1/x,b:2", "a:1//x", "a:1,"}) {
    Session::Options options;
    options.hosts = hosts;
    Session session(io_, options);
    EXPECT_EQ(CodeOf(session.Start()), ErrorCode::kInvalid) << hosts;
  }
}

TEST_F(SessionTest, UnreachableServerIsNamedWithinTheDeadline) {
  Session::Options options;
  options.hosts = test::UnreachableAddress() + "/ds";
  options.connect_deadline = milliseconds(300);
  Session session(io_, options);
  std::vector<StateEvent> events;
  session.OnState([&](const StateEvent& event) { events.push_back(event); });
  ASSERT_TRUE(session.Start().ok());
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(RunUntil(io_, [&] { return events.size() == 2; }));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(3000));
  EXPECT_EQ(events[0].state, State::kConnecting);
  EXPECT_THAT(events[0].reason, HasSubstr("ZooKeeper at 127.0.0.1:"));
  EXPECT_THAT(events[0].reason, HasSubstr("does not answer since 0."));
  EXPECT_EQ(session.session_id(), 0);

  const auto read = Get(session, "/a");
  EXPECT_EQ(CodeOf(read), ErrorCode::kUnreachable);
  EXPECT_THAT(read.error().message, HasSubstr("does not answer since"));
  // Nothing was sent, so there is no doubt.
  EXPECT_EQ(CodeOf(Create(session, "/a", "x")), ErrorCode::kUnreachable);
}

class SecretTest : public ZooKeeperTest {
 protected:
  SecretTest() : file_(testing::TempDir() + "/zookeeper_secret." + std::to_string(::getpid())) {}
  ~SecretTest() override { std::filesystem::remove(file_); }

  std::string Write(const std::string& text, mode_t mode = 0600) {
    std::ofstream(file_) << text;
    ::chmod(file_.c_str(), mode);
    return file_;
  }
  // Connected to a chroot that the first one makes.
  std::unique_ptr<Session> OpenWith(const std::string& secret) {
    Session::Options options;
    options.hosts = SharedServer().address() + "/guarded";
    options.session_timeout = milliseconds(10'000);
    if (!secret.empty()) options.secret_file = Write(secret);
    auto session = std::make_unique<Session>(io_, options);
    EXPECT_TRUE(session->Start().ok());
    EXPECT_TRUE(RunUntil(io_, [&] { return session->connected(); }));
    return session;
  }

  const std::string file_;
};

TEST_F(SecretTest, NodesAreThereForThoseWhoHaveItAlone) {
  const auto owner = OpenWith("ds:one\n");
  ASSERT_TRUE(Ensure(*owner, "/").ok());
  ASSERT_TRUE(Create(*owner, "/job", "state").ok());
  ASSERT_TRUE(Create(*owner, "/alive", "here", CreateMode::kEphemeral).ok());
  ASSERT_TRUE(Multi(*owner, {Op::Create("/other", "x"), Op::Set("/job", "new", 0)}).status.ok());
  for (const char* secret : {"", "ds:two\n"}) {
    const auto stranger = OpenWith(secret);
    for (const char* path : {"/job", "/alive", "/other"}) {
      EXPECT_EQ(CodeOf(Get(*stranger, path)), ErrorCode::kDenied) << path;
      EXPECT_EQ(CodeOf(Set(*stranger, path, "y")), ErrorCode::kDenied) << path;
      EXPECT_EQ(Delete(*stranger, path).error().code, ErrorCode::kDenied) << path;
    }
    const auto created = Create(*stranger, "/mine", "z");
    ASSERT_EQ(CodeOf(created), ErrorCode::kDenied);
    EXPECT_THAT(created.error().message, HasSubstr("--zookeeper-secret"));
    EXPECT_EQ(Multi(*stranger, {Op::Set("/job", "z", kAnyVersion)}).status.error().code,
              ErrorCode::kDenied);
  }
  const auto again = OpenWith("ds:one\n");
  EXPECT_EQ(Get(*again, "/job")->data, "new");
  // And with a connection that is made anew.
  Expire(*again, SharedServer().address());
  EXPECT_EQ(Get(*again, "/job")->data, "new");
  EXPECT_TRUE(Delete(*again, "/job").ok());
  EXPECT_TRUE(Delete(*again, "/other").ok());
}

TEST_F(SecretTest, AServerThatComesLaterGetsItToo) {
  const auto server = OwnServer();
  server->Kill();
  Session::Options options;
  options.hosts = server->address() + "/guarded";
  options.session_timeout = milliseconds(10'000);
  options.secret_file = Write("ds:one\n");
  Session session(io_, options);
  ASSERT_TRUE(session.Start().ok());
  // Its first connection was refused.
  RunFor(io_, milliseconds(1500));
  ASSERT_TRUE(server->Restart().ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return session.connected(); }));
  ASSERT_TRUE(Ensure(session, "/").ok());
  ASSERT_TRUE(Create(session, "/a", "x").ok());
  EXPECT_EQ(Get(session, "/a")->data, "x");
  // And on the next connection.
  server->Kill();
  ASSERT_TRUE(RunUntil(io_, [&] { return !session.connected(); }));
  ASSERT_TRUE(server->Restart().ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return session.connected(); }));
  EXPECT_EQ(Get(session, "/a")->data, "x");
}

TEST_F(SecretTest, AFileThatMakesNoSenseOrThatOthersReadIsRefused) {
  for (const char* text : {"", "secret\n", ":x\n", "ds:\n", "ds:a b\n", "ds:a\nds:b\n"}) {
    EXPECT_EQ(CodeOf(ReadSecret(Write(text))), ErrorCode::kInvalid) << text;
  }
  EXPECT_EQ(CodeOf(ReadSecret(Write("ds:x\n", 0640))), ErrorCode::kDenied);
  EXPECT_EQ(CodeOf(ReadSecret("/no/such/file")), ErrorCode::kIo);
  Session::Options options;
  options.hosts = SharedServer().address() + "/guarded";
  options.secret_file = "/no/such/file";
  Session session(io_, options);
  EXPECT_EQ(session.Start().error().code, ErrorCode::kIo);
}

TEST_F(SessionTest, NodesAreCreatedReadSetAndDeletedBelowTheChroot) {
  const auto session = Open();
  EXPECT_EQ(*Create(*session, "/a", "one"), "/a");
  const auto first = Get(*session, "/a");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->data, "one");
  EXPECT_EQ(first->version, 0);
  EXPECT_EQ(first->ephemeral_owner, 0);

  const std::string bytes("t\0wo", 4);
  EXPECT_EQ(*Set(*session, "/a", bytes, 0), 1);
  const auto second = Get(*session, "/a");
  EXPECT_EQ(second->data, bytes);
  EXPECT_EQ(second->version, 1);
  EXPECT_EQ(second->created_zxid, first->created_zxid);
  EXPECT_GT(second->modified_zxid, first->modified_zxid);

  ASSERT_TRUE(Create(*session, "/a/y", "").ok());
  ASSERT_TRUE(Create(*session, "/a/x", "").ok());
  EXPECT_THAT(*Children(*session, "/a"), ElementsAre("x", "y"));
  EXPECT_THAT(*Children(*session, "/"), ElementsAre("a"));
  EXPECT_TRUE(*Exists(*session, "/a/x"));
  EXPECT_TRUE(Delete(*session, "/a/x", 0).ok());
  EXPECT_FALSE(*Exists(*session, "/a/x"));
}

TEST_F(SessionTest, EnsurePathCreatesAllParentsAndMayBeRepeated) {
  const auto session = Open();
  EXPECT_TRUE(Ensure(*session, "/a/b/c").ok());
  EXPECT_TRUE(Ensure(*session, "/a/b/c").ok());
  EXPECT_TRUE(Ensure(*session, "/a/b/d").ok());
  EXPECT_THAT(*Children(*session, "/a/b"), ElementsAre("c", "d"));
  EXPECT_EQ(CodeOf(Ensure(*session, "a")), ErrorCode::kInvalid);
  EXPECT_EQ(CodeOf(Ensure(*session, "/a/")), ErrorCode::kInvalid);
}

TEST_F(SessionTest, RefusalsOfTheServerHaveCodesAndNameTheNode) {
  const auto session = Open();
  const auto missing = Get(*session, "/none");
  EXPECT_EQ(CodeOf(missing), ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("/none"));
  EXPECT_EQ(CodeOf(Children(*session, "/none")), ErrorCode::kNotFound);
  EXPECT_EQ(CodeOf(Set(*session, "/none", "")), ErrorCode::kNotFound);
  EXPECT_EQ(CodeOf(Delete(*session, "/none")), ErrorCode::kNotFound);
  EXPECT_EQ(CodeOf(Create(*session, "/none/child", "")), ErrorCode::kNotFound);

  ASSERT_TRUE(Create(*session, "/a", "").ok());
  ASSERT_TRUE(Create(*session, "/a/b", "").ok());
  EXPECT_EQ(CodeOf(Create(*session, "/a", "")), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(Set(*session, "/a", "", 7)), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(Delete(*session, "/a/b", 7)), ErrorCode::kConflict);
  EXPECT_EQ(CodeOf(Delete(*session, "/a")), ErrorCode::kConflict);

  ASSERT_TRUE(Create(*session, "/e", "", CreateMode::kEphemeral).ok());
  EXPECT_EQ(CodeOf(Create(*session, "/e/child", "")), ErrorCode::kInvalid);
}

TEST_F(SessionTest, MalformedPathsAndTooLargeDataAreRefusedHere) {
  const auto session = Open();
  for (const std::string& path : {std::string(), std::string("a"), std::string("/a/"),
                                  std::string("//"), std::string("/a\0b", 4)}) {
    EXPECT_EQ(CodeOf(Get(*session, path)), ErrorCode::kInvalid) << path;
    EXPECT_EQ(CodeOf(Create(*session, path, "")), ErrorCode::kInvalid) << path;
    EXPECT_EQ(CodeOf(Multi(*session, {Op::Delete(path, 0)}).status), ErrorCode::kInvalid) << path;
  }
  EXPECT_TRUE(Create(*session, "/largest", std::string(kDataBytesMax, 'x')).ok());
  EXPECT_EQ(Get(*session, "/largest")->data.size(), kDataBytesMax);
  const std::string large(kDataBytesMax + 1, 'x');
  EXPECT_EQ(CodeOf(Create(*session, "/b", large)), ErrorCode::kInvalid);
  EXPECT_EQ(CodeOf(Set(*session, "/largest", large)), ErrorCode::kInvalid);
  const std::string half(kDataBytesMax / 2, 'x');
  EXPECT_EQ(CodeOf(Multi(*session, {Op::Create("/c", half), Op::Create("/d", half)}).status),
            ErrorCode::kInvalid);
  EXPECT_EQ(CodeOf(Multi(*session, {}).status), ErrorCode::kInvalid);
  EXPECT_FALSE(*Exists(*session, "/c"));
}

TEST_F(SessionTest, MultiAppliesAllAndTellsTheNewVersions) {
  const auto session = Open();
  ASSERT_TRUE(Create(*session, "/epoch", "1").ok());
  ASSERT_TRUE(Create(*session, "/state", "a").ok());
  ASSERT_TRUE(Create(*session, "/old", "").ok());
  ASSERT_TRUE(Set(*session, "/state", "b").ok());
  const MultiOutcome outcome = Multi(
      *session, {Op::Check("/epoch", 0), Op::Set("/state", "c", 1), Op::Create("/new", "n"),
                 Op::Delete("/old", 0), Op::Create("/mine", "", CreateMode::kEphemeralSequential)});
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().message;
  EXPECT_THAT(outcome.versions, ElementsAre(0, 2, 0, 0, 0));
  EXPECT_EQ(outcome.failed_op, std::nullopt);
  EXPECT_EQ(Get(*session, "/state")->data, "c");
  EXPECT_EQ(Get(*session, "/new")->data, "n");
  EXPECT_FALSE(*Exists(*session, "/old"));
  EXPECT_EQ(Children(*session, "/")->size(), 4u);
}

TEST_F(SessionTest, MultiWithAFailedCheckChangesNothingAndNamesTheOperation) {
  const auto session = Open();
  ASSERT_TRUE(Create(*session, "/epoch", "1").ok());
  ASSERT_TRUE(Create(*session, "/state", "a").ok());
  ASSERT_TRUE(Set(*session, "/epoch", "2").ok());
  MultiOutcome outcome =
      Multi(*session, {Op::Check("/epoch", 0), Op::Set("/state", "b", 0), Op::Create("/new", "")});
  EXPECT_EQ(CodeOf(outcome.status), ErrorCode::kConflict);
  EXPECT_EQ(outcome.failed_op, std::size_t{0});
  EXPECT_THAT(outcome.status.error().message, HasSubstr("check /epoch"));

  outcome = Multi(*session, {Op::Check("/epoch", 1), Op::Set("/state", "b", 0),
                             Op::Set("/missing", "", kAnyVersion)});
  EXPECT_EQ(CodeOf(outcome.status), ErrorCode::kNotFound);
  EXPECT_EQ(outcome.failed_op, std::size_t{2});

  EXPECT_EQ(Get(*session, "/state")->data, "a");
  EXPECT_FALSE(*Exists(*session, "/new"));
}

TEST_F(SessionTest, OperationsGivenBeforeTheFirstConnectionWaitForIt) {
  const auto session = Prepare(SharedServer().address(), milliseconds(10'000));
  EXPECT_EQ(session->state(), State::kConnecting);
  EXPECT_TRUE(Ensure(*session, "/a").ok());
  EXPECT_TRUE(session->connected());
  EXPECT_NE(session->session_id(), 0);
  EXPECT_EQ(session->Trouble(), "");
}

TEST_F(SessionTest, AWatchFiresOnceAndMayBeArmedAgain) {
  const auto session = Open();
  const auto other = Open();
  ASSERT_TRUE(Create(*session, "/a", "0").ok());
  std::vector<std::string> fired;
  const Session::WatchId watch =
      session->AddWatch([&](const std::string& path) { fired.push_back(path); });
  ASSERT_TRUE(Get(*session, "/a", watch).ok());
  ASSERT_TRUE(Set(*other, "/a", "1").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return fired.size() == 1; }));
  ASSERT_TRUE(Set(*other, "/a", "2").ok());
  ASSERT_EQ(Get(*session, "/a", watch)->data, "2");
  EXPECT_THAT(fired, ElementsAre("/a"));
  ASSERT_TRUE(Set(*other, "/a", "3").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return fired.size() == 2; }));
  ASSERT_TRUE(Get(*session, "/a", watch).ok());
  session->RemoveWatch(watch);
  ASSERT_TRUE(Delete(*other, "/a").ok());
  EXPECT_FALSE(*Exists(*session, "/a"));
  EXPECT_EQ(fired.size(), 2u);
}

TEST_F(SessionTest, ClosingRemovesEphemeralNodesAndEndsOpenOperations) {
  const auto other = Open();
  auto session = Open();
  ASSERT_TRUE(Create(*session, "/e", "", CreateMode::kEphemeral).ok());
  EXPECT_EQ(Get(*other, "/e")->ephemeral_owner, session->session_id());
  std::vector<ErrorCode> codes;
  session->Get("/e", [&](const Result<NodeValue>& value) { codes.push_back(CodeOf(value)); });
  session->Close();
  EXPECT_THAT(codes, ElementsAre(ErrorCode::kClosed));
  EXPECT_EQ(CodeOf(Get(*session, "/e")), ErrorCode::kClosed);
  EXPECT_TRUE(RunUntil(io_, [&] { return !*Exists(*other, "/e"); }));
  session->Close();
  session.reset();
}

TEST_F(SessionTest, AnExpiredSessionIsReplacedAndReportedLostBefore) {
  const auto session = Open();
  ASSERT_TRUE(Create(*session, "/e", "", CreateMode::kEphemeral).ok());
  const std::int64_t old_id = session->session_id();
  std::vector<StateEvent> events;
  session->OnState([&](const StateEvent& event) { events.push_back(event); });
  Expire(*session, SharedServer().address());
  ASSERT_GE(events.size(), 2u);
  const StateEvent& lost = events[events.size() - 2];
  EXPECT_EQ(lost.state, State::kLost);
  EXPECT_THAT(lost.reason, HasSubstr("expired the session"));
  EXPECT_EQ(events.back().state, State::kConnected);
  EXPECT_NE(events.back().session_id, old_id);
  EXPECT_TRUE(session->IsFormerSession(old_id));
  EXPECT_FALSE(session->IsFormerSession(session->session_id()));
  EXPECT_FALSE(*Exists(*session, "/e"));
}

TEST_F(SessionTest, AStoppedServerSuspendsAndThenLosesTheSessionByOurOwnClock) {
  const auto server = OwnServer();
  const milliseconds timeout(1200);
  const auto session = Open(server->address(), timeout);
  EXPECT_EQ(session->session_timeout(), timeout);
  ASSERT_TRUE(Create(*session, "/a", "").ok());
  std::vector<State> states;
  std::string reason;
  session->OnState([&](const StateEvent& event) {
    states.push_back(event.state);
    if (event.state == State::kLost) reason = event.reason;
  });
  // Idle, so that only the heartbeats keep the lease.
  RunFor(io_, timeout * 2);
  ASSERT_TRUE(states.empty());

  server->Stop();
  std::vector<ErrorCode> codes;
  session->Set("/a", "x", kAnyVersion,
               [&](const Result<std::int32_t>& set) { codes.push_back(CodeOf(set)); });
  session->Get("/a", [&](const Result<NodeValue>& value) { codes.push_back(CodeOf(value)); });
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(RunUntil(io_, [&] { return session->state() == State::kSuspended; }));
  EXPECT_EQ(CodeOf(Set(*session, "/a", "y")), ErrorCode::kUnreachable);
  ASSERT_TRUE(RunUntil(io_, [&] { return codes.size() == 2; }));
  EXPECT_THAT(codes, ElementsAre(ErrorCode::kMaybeApplied, ErrorCode::kUnreachable));
  ASSERT_TRUE(RunUntil(io_, [&] { return session->state() == State::kLost; }));
  EXPECT_LE(std::chrono::steady_clock::now() - begin, timeout + milliseconds(500));
  EXPECT_THAT(states, ElementsAre(State::kSuspended, State::kLost));
  EXPECT_THAT(reason, HasSubstr("does not answer since 1."));

  server->Continue();
  ASSERT_TRUE(RunUntil(io_, [&] { return session->connected(); }));
  EXPECT_TRUE(Get(*session, "/a").ok());
}

TEST_F(SessionTest, AKilledAndRestartedServerKeepsSessionAndNodes) {
  const auto server = OwnServer();
  const auto session = Open(server->address(), milliseconds(30'000));
  const std::int64_t id = session->session_id();
  ASSERT_TRUE(Create(*session, "/persistent", "p").ok());
  ASSERT_TRUE(Create(*session, "/ephemeral", "e", CreateMode::kEphemeral).ok());
  std::vector<State> states;
  session->OnState([&](const StateEvent& event) { states.push_back(event.state); });
  server->Kill();
  ASSERT_TRUE(RunUntil(io_, [&] { return session->state() == State::kSuspended; }));
  ASSERT_TRUE(server->Restart().ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return session->connected(); }));
  EXPECT_EQ(session->session_id(), id);
  EXPECT_THAT(states, ElementsAre(State::kSuspended, State::kConnected));
  EXPECT_EQ(Get(*session, "/persistent")->data, "p");
  EXPECT_EQ(Get(*session, "/ephemeral")->ephemeral_owner, id);
}

TEST_F(SessionTest, AStateCallbackMayRemoveItselfAndCloseTheSession) {
  const auto session = Prepare(SharedServer().address(), milliseconds(10'000));
  int calls = 0;
  Session::SubscriptionId id = 0;
  id = session->OnState([&](const StateEvent&) {
    ++calls;
    session->RemoveOnState(id);
    session->Close();
  });
  session->OnState([&](const StateEvent&) { ++calls; });
  ASSERT_TRUE(RunUntil(io_, [&] { return calls > 0; }));
  RunFor(io_, milliseconds(200));
  EXPECT_EQ(calls, 1);
}

TEST(PathTest, ParentNameAndJoin) {
  EXPECT_EQ(ParentOf("/a/b"), "/a");
  EXPECT_EQ(ParentOf("/a"), "/");
  EXPECT_EQ(NameOf("/a/b"), "b");
  EXPECT_EQ(Join("/", "a"), "/a");
  EXPECT_EQ(Join("/a", "b"), "/a/b");
}

}  // namespace
}  // namespace ps::zk
