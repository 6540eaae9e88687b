#include "ps-worker/core/outbox.h"

#include <gtest/gtest.h>

#include <string>

namespace ps::worker {
namespace {

using control::Body;
using control::Make;

control::MessageT Exit(std::uint64_t task) {
  control::TaskExitedT exited;
  exited.task = task;
  return Make(std::move(exited));
}

control::MessageT Cut(std::uint64_t round, std::uint64_t task) {
  control::WorkerCutT cut;
  cut.round = round;
  return Make(std::move(cut), task);
}

// "1:TaskReady 1:TaskExited", sending at most `limit`.
std::string FlushText(Outbox& outbox, std::size_t limit = 1000) {
  std::string text;
  outbox.Flush([&](const control::MessageT& message) {
    if (limit-- == 0) return false;
    const std::uint64_t task =
        message.body.type == Body::TaskExited ? message.body.AsTaskExited()->task : message.task;
    text += (text.empty() ? "" : " ") + std::to_string(task) + ":" + control::BodyName(message);
    return true;
  });
  return text;
}

TEST(OutboxTest, OnlyWhatMattersIsKept) {
  EXPECT_TRUE(Outbox::Keeps(Body::TaskReady));
  EXPECT_TRUE(Outbox::Keeps(Body::WorkerCut));
  EXPECT_TRUE(Outbox::Keeps(Body::TaskFailed));
  EXPECT_FALSE(Outbox::Keeps(Body::Progress));
  EXPECT_FALSE(Outbox::Keeps(Body::ReadyForCheckpoint));
  EXPECT_FALSE(Outbox::Keeps(Body::NONE));
}

TEST(OutboxTest, MessagesLeaveInAFixedOrderAndStay) {
  Outbox outbox;
  outbox.Keep(Make(control::DrainedT(), 1));
  outbox.Keep(Make(control::LeaseProgressT(), 1));
  outbox.Keep(Make(control::TaskReadyT(), 2));
  outbox.Keep(Make(control::TaskReadyT(), 1));
  const std::string expected = "1:TaskReady 1:LeaseProgress 1:Drained 2:TaskReady";
  EXPECT_EQ(FlushText(outbox), expected);
  EXPECT_EQ(FlushText(outbox), expected);
}

TEST(OutboxTest, TheNewestOfAKindReplacesTheOlder) {
  Outbox outbox;
  outbox.Keep(Cut(4, 1));
  outbox.Keep(Cut(5, 1));
  EXPECT_EQ(outbox.size(), 1u);
  outbox.Flush([](const control::MessageT& message) {
    EXPECT_EQ(message.body.AsWorkerCut()->round, 5u);
    return true;
  });
}

TEST(OutboxTest, AnAnswerSettlesTheQuestion) {
  Outbox outbox;
  outbox.Keep(Make(control::LeaseRequestT(), 1));
  outbox.Keep(Make(control::TaskReadyT(), 1));
  outbox.Settle(1, Body::LeaseRequest);
  outbox.Settle(1, Body::Progress);
  outbox.Settle(9, Body::TaskReady);
  EXPECT_EQ(FlushText(outbox), "1:TaskReady");
}

TEST(OutboxTest, ATaskIsForgottenOnceItsEndWasSent) {
  Outbox outbox;
  outbox.Keep(Make(control::TaskFailedT(), 1));
  outbox.KeepExit(Exit(1));
  ASSERT_EQ(outbox.Exits().size(), 1u);
  EXPECT_EQ(outbox.Exits()[0]->task, 1u);
  EXPECT_EQ(FlushText(outbox), "1:TaskFailed 1:TaskExited");
  EXPECT_EQ(outbox.size(), 0u);
  EXPECT_TRUE(outbox.Exits().empty());
}

TEST(OutboxTest, WhatCouldNotBeSentStays) {
  Outbox outbox;
  outbox.Keep(Make(control::TaskFailedT(), 1));
  outbox.KeepExit(Exit(1));
  EXPECT_EQ(FlushText(outbox, 1), "1:TaskFailed");
  EXPECT_EQ(outbox.Exits().size(), 1u);
  EXPECT_EQ(FlushText(outbox), "1:TaskFailed 1:TaskExited");
}

TEST(OutboxTest, ATaskWhoseEndWasToldAtOnceIsForgotten) {
  Outbox outbox;
  outbox.Keep(Make(control::TaskReadyT(), 1));
  outbox.Keep(Make(control::TaskReadyT(), 2));
  outbox.Forget(1);
  EXPECT_EQ(FlushText(outbox), "2:TaskReady");
}

TEST(OutboxTest, TooManyEndsForgetTheOldest) {
  Outbox outbox;
  for (std::uint64_t task = 1; task <= Outbox::kExitsMax + 3; ++task) outbox.KeepExit(Exit(task));
  ASSERT_EQ(outbox.Exits().size(), Outbox::kExitsMax);
  EXPECT_EQ(outbox.Exits()[0]->task, 4u);
}

}  // namespace
}  // namespace ps::worker
