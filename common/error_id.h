// Every error that somebody can meet and look up: DS-E and the number here, four digits.
//
// A number is given once, and never to another error, also after its error is gone: who finds it in
// an old log must not be told something else. error_catalogue.cc has cause and remedy of each.
#pragma once

#include <cstdint>

#include "common/result.h"

namespace ps {

enum class ErrorId : std::uint16_t {
  // One for each ErrorCode, in its order: what has no id of its own.
  kInternal = 1,
  kUsage = 2,
  kInvalid = 3,
  kNotFound = 4,
  kConflict = 5,
  kDenied = 6,
  kUnreachable = 7,
  kTimeout = 8,
  kMaybeApplied = 9,
  kClosed = 10,
  kIo = 11,

  // Command lines and configuration.
  kCommandLine = 101,
  kOptionValue = 102,
  kConfigurationFile = 103,
  kConfigurationUnreadable = 104,
  kFlagsTogether = 105,
  kKeysWanted = 106,
  kApiGuardWanted = 107,
  kAdvertiseWanted = 108,
  kPortTaken = 109,
  kAddressUnusable = 110,
  kErrorUnknown = 111,
  kStandardOutput = 112,

  // The job file.
  kJobFileUnreadable = 201,
  kJobFileSyntax = 202,
  kJobFileKeyUnknown = 203,
  kJobFileKeyMissing = 204,
  kJobFileValue = 205,
  kJobFileContradiction = 206,
  kJobFileFindings = 207,
  kSetPath = 208,
  kFieldUnknown = 209,
  kLoadMapping = 210,
  kLoadSourceMissing = 211,
  kFromOtherModel = 212,
  kLayoutRefused = 213,

  // Data files.
  kDataFileMissing = 301,
  kDataFileUnreadable = 302,
  kDataFileDamaged = 303,
  kDataFileFormat = 304,
  kDataDisagree = 305,
  kDataLabels = 306,

  // The network, and finding the coordinator.
  kNoCoordinatorKnown = 401,
  kContextFile = 402,
  kNoCoordinatorReady = 403,
  kCoordinatorNotTrusted = 404,
  kNoCoordinatorThere = 405,
  kOutcomeUnknown = 406,
  kHostUnknown = 407,
  kNothingListens = 408,
  kConnectTimeout = 409,
  kAnswerTimeout = 410,
  kNoTls = 411,
  kUrl = 412,
  kNoLeader = 413,
  kNotOfTheApi = 414,
  kRequestBody = 415,
  kTooManyRequests = 416,

  // Keys, tokens and certificates.
  kTokenMissing = 501,
  kTokenUnknown = 502,
  kTokenForbids = 503,
  kTokenInTheClear = 504,
  kCertificateNotTrusted = 505,
  kTokenFile = 506,
  kTokenVariable = 507,
  kTokenList = 508,
  kTokenListWritable = 509,
  kKeyFile = 510,
  kTrustedList = 511,
  kSecretExposed = 512,
  kSecretUnreadable = 513,
  kCertificateFile = 514,
  kPeerWithoutKey = 515,
  kPeerUnknown = 516,
  kOwnKeyUnknown = 517,
  kKeyWanted = 518,
  kNameTaken = 519,
  kNameUnknown = 520,
  kSecretExists = 521,
  kAuthorityIncomplete = 522,

  // Checkpoints and backups.
  kNoCheckpoint = 601,
  kCheckpointUnknown = 602,
  kCheckpointDamaged = 603,
  kCheckpointNotUsable = 604,
  kCheckpointMissing = 605,
  kCheckpointPinned = 606,
  kPinsMost = 607,
  kRollbackUnconfirmed = 608,
  kCheckpointNeeded = 609,
  kCheckpointElsewhere = 610,
  kNoFileServer = 611,
  kBackupUnderWay = 612,
  kBackupMissing = 613,
  kImportFolder = 614,
  kImportFailed = 615,
  kImportAddress = 616,
  kCheckpointsDiffer = 617,
  kCheckpointVersion = 618,
  kStoreFile = 619,
  kCheckpointFolder = 620,
  kFileServer = 621,
  kExportTarget = 622,

  // ZooKeeper.
  kZooKeeperAddress = 701,
  kZooKeeperDenied = 702,
  kZooKeeperLost = 703,
  kZooKeeperSecret = 704,
  kZooKeeperSession = 705,
  kZooKeeperTooLarge = 706,
  kZooKeeperContent = 707,
  kZooKeeperOutcome = 708,

  // Jobs.
  kJobUnknown = 801,
  kJobOver = 802,
  kJobEnding = 803,
  kJobNotTraining = 804,
  kJobImporting = 805,
  kJobNotOver = 806,
  kBulkSynchronous = 807,
  kNoAgentForCheck = 808,
  kCheckInterrupted = 809,
  kCheckTimeout = 810,
  kCheckBusy = 811,
  kNoServer = 812,
  kWorkerUnknown = 813,
  kNoLog = 814,
  kAgentSilent = 815,
  kJobWaitTimeout = 816,

  // Nodes, scale and the local cluster.
  kNodeUnknown = 901,
  kTooFewServers = 902,
  kWaitTimeout = 903,
  kClusterRuns = 904,
  kNoLocalCluster = 905,
  kLocalBusy = 906,
  kProgramsMissing = 907,
  kZooKeeperMissing = 908,
  kProcessEnded = 909,
  kLocalTimeout = 910,
  kLocalFileDamaged = 911,
  kProcessesSurvive = 912,

  // Workers, models and training.
  kModelFile = 1001,
  kModelParameters = 1002,
  kModelOutput = 1003,
  kModelShape = 1004,
  kPrecision = 1005,
  kNotFinite = 1006,
  kInitialValues = 1007,
  kStateDirectoryTaken = 1008,
  kRetentionDirectory = 1009,
  kRingMemory = 1010,
  kRingTooSmall = 1011,
  kNoGpu = 1012,

  // Disks and files.
  kDiskFull = 1101,
  kFileDenied = 1102,
  kFileNotWritten = 1103,
  kFolderNotMade = 1104,
  kFileUnreadable = 1105,

  // Messages between the programs.
  kControlMessage = 1201,
  kDataMessage = 1202,
  kMessageTooLong = 1203,
};

}  // namespace ps
