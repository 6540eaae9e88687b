#include "common/error_catalogue.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace ps {
namespace {

constexpr ErrorEntry kEntries[] = {
    // Of any kind.
    {ErrorId::kInternal, ErrorCode::kInternal, "something failed that should not",
     "A bug, or the system refused what it never should. The message names the call.",
     "Look into the logs of the daemon for the lines before it, and report both."},
    {ErrorId::kUsage, ErrorCode::kUsage, "a flag or an argument is wrong",
     "A value was given that the command, the daemon or the API does not take.",
     "The command with `--help` says what it takes."},
    {ErrorId::kInvalid, ErrorCode::kInvalid, "what was read cannot be used",
     "A file, a message or a checkpoint is not what its reader expects.",
     "The message names the place: correct it there, or give another file."},
    {ErrorId::kNotFound, ErrorCode::kNotFound, "what was asked for is not there",
     "A name or number is misspelt, or what it meant is gone.",
     "`ds-cli job list`, `ds-cli ckpt list` and `ds-cli node list` show what is there."},
    {ErrorId::kConflict, ErrorCode::kConflict, "the state of things forbids it",
     "Something exists already, or is in a state in which this cannot be done.",
     "`ds-cli job describe JOB` shows the state of a job, `ds-cli node list` that of the nodes."},
    {ErrorId::kDenied, ErrorCode::kDenied, "not allowed",
     "A permission of the system, a key or a token does not cover it.",
     "The message names what was refused; docs/security.md says who may do what."},
    {ErrorId::kUnreachable, ErrorCode::kUnreachable, "the other side does not answer",
     "It does not run, is about to start, or the network between is broken.",
     "`ds-cli node doctor` says what this machine reaches. Most commands may be repeated."},
    {ErrorId::kTimeout, ErrorCode::kTimeout, "it took longer than allowed",
     "The other side is slow, overloaded or stuck; what was begun may go on.",
     "Look whether it goes on (`ds-cli job describe JOB`), and wait with a longer --timeout."},
    {ErrorId::kMaybeApplied, ErrorCode::kMaybeApplied, "it is not known whether it was done",
     "The connection was lost after the request had been sent and before an answer came.",
     "Look at the state before you try again: `ds-cli job list`, `ds-cli job describe JOB`."},
    {ErrorId::kClosed, ErrorCode::kClosed, "it was ended before it was done",
     "The user interrupted, the process stops, or what it worked on was closed.",
     "Begin again if it is still wanted."},
    {ErrorId::kIo, ErrorCode::kIo, "a file or a disk fails",
     "The system refused to read or write; the message has its reason.",
     "`ds-cli node doctor --dir DIR` checks a folder; `dmesg` shows errors of the disk itself."},

    // Command lines and configuration.
    {ErrorId::kCommandLine, ErrorCode::kUsage, "the command line is not understood",
     "A command or option is misspelt or unknown here, or a value is missing.",
     "`ds-cli --help` lists the commands, and each has its own `--help`."},
    {ErrorId::kOptionValue, ErrorCode::kUsage, "the value of an option or argument is not possible",
     "It has another form, or lies outside of the range.",
     "The command with `--help` says which values it takes."},
    {ErrorId::kConfigurationFile, ErrorCode::kInvalid,
     "the configuration file of a daemon is wrong",
     "A line is not KEY = VALUE, or its key is no flag of the daemon, or stands there twice.",
     "Correct the line, and try it: `DAEMON --config FILE --check-config`. `DAEMON --help` lists "
     "the keys."},
    {ErrorId::kConfigurationUnreadable, ErrorCode::kInvalid,
     "the configuration file of a daemon cannot be read",
     "--config names a file that is not there, is a folder, or is closed to the daemon's user.",
     "`ls -l FILE` as the user of the daemon; packages install /etc/ds/DAEMON.conf."},
    {ErrorId::kFlagsTogether, ErrorCode::kUsage, "flags of a daemon lack or contradict each other",
     "Some are of use only together, such as --key and --trusted, and some exclude each other.",
     "Give both, or neither; the manual page of the daemon describes each."},
    {ErrorId::kKeysWanted, ErrorCode::kUsage, "a daemon would talk to everybody",
     "It listens where other hosts can reach it (--bind), and has no keys to know its peers by.",
     "`ds-cli auth create ROLE NAME` makes --key and --trusted; docs/security.md has the steps. "
     "--insecure only where the network itself is guarded."},
    {ErrorId::kApiGuardWanted, ErrorCode::kUsage, "the REST API would be open to everybody",
     "The coordinator listens where other hosts can reach it, without TLS or without tokens.",
     "`ds-cli auth certificate HOST` makes --api-cert and --api-key, `ds-cli token create ROLE "
     "NAME` makes --api-tokens."},
    {ErrorId::kAdvertiseWanted, ErrorCode::kUsage,
     "a daemon does not know by which address others reach it",
     "--bind 0.0.0.0 or :: is every address of the host, and others need one to connect to.",
     "Add --advertise with the name or address of this host as the other nodes know it."},
    {ErrorId::kPortTaken, ErrorCode::kConflict, "the port is in use",
     "Another process listens there: an older start of the same daemon, or another program.",
     "`ss -ltnp` shows which process has the port; stop it, or choose another port."},
    {ErrorId::kAddressUnusable, ErrorCode::kInvalid, "the address cannot be listened on",
     "It is not an address of this host, or is none at all, or the port needs a privilege.",
     "`ip address` shows the addresses of this host; correct --bind."},
    {ErrorId::kErrorUnknown, ErrorCode::kNotFound, "there is no error with this code",
     "It is misspelt, or is of another version of the programs.",
     "`ds-cli explain` lists all that this version knows; `ds-cli version --cluster` compares "
     "versions."},
    {ErrorId::kStandardOutput, ErrorCode::kInternal, "the output cannot be written",
     "The disk that it is redirected to is full, or the reader at the other end failed.",
     "`df -h` for the disk that the output goes to, then repeat the command."},

    // The job file.
    {ErrorId::kJobFileUnreadable, ErrorCode::kNotFound, "the job file cannot be read",
     "It is not where the path says, or may not be read by you.",
     "`ls -l FILE`; relative paths begin in the folder where ds-cli is called. - is standard "
     "input."},
    {ErrorId::kJobFileSyntax, ErrorCode::kInvalid, "the job file is no YAML that describes one job",
     "An indentation, quote or bracket is wrong, a key stands twice, or the file is empty, too "
     "large or not UTF-8. Aliases (*NAME) are not taken.",
     "Correct the line that the message names; examples/ has job files to begin with."},
    {ErrorId::kJobFileKeyUnknown, ErrorCode::kInvalid, "a key of the job file is unknown",
     "It is misspelt, or stands in another section than the one it belongs to.",
     "`ds-cli job explain` lists the sections, `ds-cli job explain SECTION` the keys of one."},
    {ErrorId::kJobFileKeyMissing, ErrorCode::kInvalid, "a key of the job file is missing",
     "Keys without a default must be given.",
     "`ds-cli job explain FIELD` says what it means, with an example."},
    {ErrorId::kJobFileValue, ErrorCode::kInvalid, "a value in the job file is not possible",
     "It has another type than the key wants, or lies outside of its range.",
     "`ds-cli job explain FIELD` says which values it takes."},
    {ErrorId::kJobFileContradiction, ErrorCode::kInvalid, "keys of the job file do not go together",
     "A key belongs to another model, optimizer or format, or two values exclude each other.",
     "`ds-cli job explain FIELD` says when a key has a meaning; docs/job-file.md has all rules."},
    {ErrorId::kJobFileFindings, ErrorCode::kInvalid, "the job file is wrong in several places",
     "Each line above is one finding, of unknown and missing keys and of values.",
     "Correct them all, then `ds-cli job submit FILE --dry-run --offline`."},
    {ErrorId::kSetPath, ErrorCode::kInvalid, "--set names no place in the job file",
     "The path is no list of keys, or leads through a value that is no map or list.",
     "Write --set SECTION.KEY=VALUE; `ds-cli job explain` lists them."},
    {ErrorId::kFieldUnknown, ErrorCode::kNotFound, "the job file has no such field",
     "The path given to `ds-cli job explain` is misspelt.",
     "`ds-cli job explain` lists the sections."},
    {ErrorId::kLoadMapping, ErrorCode::kInvalid, "checkpoint.load does not fit the model",
     "A tensor or table is not in the source, not in the model, of another shape, or has two "
     "sources.",
     "`ds-cli ckpt describe JOB@ROUND` shows what a checkpoint holds; correct tensors, tables or "
     "rename."},
    {ErrorId::kLoadSourceMissing, ErrorCode::kNotFound,
     "checkpoint.from or checkpoint.load names nothing",
     "There is no such job here, or it has no such checkpoint.",
     "`ds-cli job list`, then `ds-cli ckpt list JOB`. One from elsewhere comes here with `ds-cli "
     "ckpt import DIRECTORY`."},
    {ErrorId::kFromOtherModel, ErrorCode::kInvalid, "checkpoint.from is of another model",
     "All tensors and the number of shards must be those of the job it goes on from.",
     "Leave model and resources.shards as they were, or take single tensors with checkpoint.load "
     "(`ds-cli job explain checkpoint.load`)."},
    {ErrorId::kLayoutRefused, ErrorCode::kInvalid,
     "the parameters of the model cannot be cut into shards",
     "There are more shards than blocks of parameters, too many tables, or rows that are too wide.",
     "Lower resources.shards, or leave it out: then the coordinator chooses."},

    // Data files.
    {ErrorId::kDataFileMissing, ErrorCode::kNotFound, "a data file is not there",
     "Every worker reads the files itself: the path must exist on each node, and begins in the "
     "folder of the job file if it is relative.",
     "`ls -l FILE` on each node with a ps-worker; a shared folder serves all nodes."},
    {ErrorId::kDataFileUnreadable, ErrorCode::kIo, "a data file cannot be read",
     "The user of ps-worker may not read it, or its disk or share fails.",
     "`sudo -u ds head -c 1 FILE` on each node with a ps-worker."},
    {ErrorId::kDataFileDamaged, ErrorCode::kInvalid, "a data file is cut or damaged",
     "A download or a copy ended early, or the file was changed.",
     "Fetch it again, and compare its size or digest with that of the source."},
    {ErrorId::kDataFileFormat, ErrorCode::kInvalid,
     "a data file has another format than the job says",
     "data.train.format, delimiter, header or a column does not fit the file, or one of its lines "
     "is malformed.",
     "`ds-cli job explain data.train` says what each format wants; then `ds-cli job submit FILE "
     "--dry-run`."},
    {ErrorId::kDataDisagree, ErrorCode::kInvalid, "data and job do not fit each other",
     "The number of records, features or labels differs between files, or from what the job says.",
     "Compare the file with data and model in the job file: `ds-cli job explain data`."},
    {ErrorId::kDataLabels, ErrorCode::kInvalid, "the labels do not fit loss or model",
     "A classification wants whole classes from 0 and as many outputs as classes; "
     "binary_cross_entropy wants 0 and 1.",
     "Correct data.train.label or label_positive, the loss, or the last layer of the model "
     "(`ds-cli job explain training.loss`)."},

    // The network, and finding the coordinator.
    {ErrorId::kNoCoordinatorKnown, ErrorCode::kUnreachable,
     "ds-cli does not know which cluster is meant",
     "Neither --coordinator nor DS_COORDINATOR is given, and no local cluster was started.",
     "`ds-cli local up` for a cluster on this machine, or `export "
     "DS_COORDINATOR=https://HOST:PORT`."},
    {ErrorId::kContextFile, ErrorCode::kInvalid,
     "the file that says where the local cluster is cannot be used",
     "It is damaged, or was written by something else.",
     "`ds-cli local down`, then `ds-cli local up`, write it anew."},
    {ErrorId::kNoCoordinatorReady, ErrorCode::kUnreachable, "no coordinator answers",
     "None runs at these addresses, none leads at present, or the network between is broken.",
     "`ds-cli node doctor` says what can be reached from here; `ds-cli local status` for a local "
     "cluster. Of a service: `systemctl status ps-coordinator`."},
    {ErrorId::kCoordinatorNotTrusted, ErrorCode::kDenied,
     "a coordinator answers, and is not to be trusted",
     "It redirects to an address without TLS, or its certificate is not known.",
     "Give https URLs (--coordinator, DS_COORDINATOR) and the authority in DS_CA; `ds-cli node "
     "doctor` shows which fails."},
    {ErrorId::kNoCoordinatorThere, ErrorCode::kInternal, "what answers is no coordinator",
     "The port is that of another program or of another API.",
     "Correct --coordinator or DS_COORDINATOR: it is the coordinator's --http-port that is meant."},
    {ErrorId::kOutcomeUnknown, ErrorCode::kMaybeApplied,
     "it is not known whether the request was carried out",
     "The connection was lost after the request had been sent and before an answer came.",
     "`ds-cli job list` shows whether it was; repeat the command only if not."},
    {ErrorId::kHostUnknown, ErrorCode::kUnreachable, "the name of the host is not known",
     "The name is misspelt, or the name service does not know it here.",
     "`getent hosts HOST` on this machine; give the address instead if that is empty."},
    {ErrorId::kNothingListens, ErrorCode::kUnreachable, "nothing listens at this address",
     "The host is there; the daemon does not run, or listens on another port or only on 127.0.0.1.",
     "`systemctl status ps-coordinator` and `ss -ltnp` on that host; `ds-cli local up --repair` "
     "for a local cluster."},
    {ErrorId::kConnectTimeout, ErrorCode::kUnreachable, "the address does not accept a connection",
     "The host is down, or a firewall swallows the packets.",
     "`ping HOST`, then look at the firewall's rules for the port."},
    {ErrorId::kAnswerTimeout, ErrorCode::kTimeout,
     "the connection was accepted, and no answer came",
     "The process hangs or is stopped, or what listens speaks another protocol.",
     "Look into the log of that process; `ds-cli node doctor --deadline 30s` asks with more "
     "patience."},
    {ErrorId::kNoTls, ErrorCode::kInvalid, "the other side does not speak TLS, or no HTTP",
     "The URL says https and the coordinator has no --api-cert, or the port is another program's.",
     "Try the URL with http:// if the cluster has no certificates; else correct the port."},
    {ErrorId::kUrl, ErrorCode::kUsage, "this is no URL of a coordinator",
     "It must be http://HOST:PORT or https://HOST:PORT.",
     "Correct --coordinator or DS_COORDINATOR."},
    {ErrorId::kNoLeader, ErrorCode::kUnreachable, "no coordinator leads at present",
     "An election is under way, which takes about a ZooKeeper session, or no coordinator reaches "
     "ZooKeeper.",
     "Ask again in some seconds. If it lasts, `ds-cli node doctor --zookeeper HOST:PORT/ds` on a "
     "coordinator's host."},
    {ErrorId::kNotOfTheApi, ErrorCode::kNotFound, "the REST API has no such path or method",
     "The path is misspelt, or the coordinator is of an older version than the client.",
     "docs/openapi.yaml lists all; `ds-cli version --cluster` compares versions."},
    {ErrorId::kRequestBody, ErrorCode::kUsage, "the body or query of a request is wrong",
     "A member is missing, or of another type than the API wants.",
     "docs/openapi.yaml has the members of each request."},
    {ErrorId::kTooManyRequests, ErrorCode::kUnreachable, "too many requests from one address",
     "The coordinator answers a limited number a second, so that one client cannot stop the "
     "others.",
     "Wait a second; let a program ask less often, or watch /metrics in its place."},

    // Keys, tokens and certificates.
    {ErrorId::kTokenMissing, ErrorCode::kDenied, "the REST API wants a token, and none was given",
     "The coordinator was started with --api-tokens.",
     "Set DS_TOKEN_FILE to your token; an administrator makes one: `ds-cli token create submitter "
     "NAME`."},
    {ErrorId::kTokenUnknown, ErrorCode::kDenied, "the token is not known, or not any more",
     "It was revoked, has expired, is of another cluster, or the coordinator has another list.",
     "`ds-cli token list` on the coordinator's host shows names and dates; `ds-cli token create "
     "ROLE NAME` makes a new one."},
    {ErrorId::kTokenForbids, ErrorCode::kDenied, "the token does not allow that",
     "A viewer reads, a submitter starts jobs and ends his own, an admin does all.",
     "Use a token of the role or person that the message names: `ds-cli token create ROLE NAME`."},
    {ErrorId::kTokenInTheClear, ErrorCode::kDenied, "the token would be sent without TLS",
     "Who listens on the way could read it, and use it.",
     "Give an https:// URL (--coordinator, DS_COORDINATOR) and the authority in DS_CA."},
    {ErrorId::kCertificateNotTrusted, ErrorCode::kDenied,
     "the certificate of the other side is not to be trusted",
     "It is of an authority that is not known here, has expired, or is for another host's name.",
     "Set DS_CA to the cluster's ca.crt, or make a certificate for that name: `ds-cli auth "
     "certificate NAME --host HOST`."},
    {ErrorId::kTokenFile, ErrorCode::kInvalid, "the file holds no token",
     "DS_TOKEN_FILE names another file, such as the list of hashes, or the file was changed.",
     "`ds-cli token create ROLE NAME --to FILE` writes one."},
    {ErrorId::kTokenVariable, ErrorCode::kUsage, "DS_TOKEN holds no token",
     "The variable has another text, often the name of a file.",
     "Name files in DS_TOKEN_FILE; DS_TOKEN is the token itself, as `ds-cli token create ROLE "
     "NAME` makes it."},
    {ErrorId::kTokenList, ErrorCode::kInvalid, "the list of tokens is wrong",
     "A line is not ROLE NAME SHA-256 [until DATE], or an entry stands there twice.",
     "Correct the line; `ds-cli token list --tokens FILE` reads the list as the coordinator does."},
    {ErrorId::kTokenListWritable, ErrorCode::kDenied, "everybody may write the list of tokens",
     "Who may write it may let himself in.",
     "`chmod o-w FILE`, then look whether all entries are yours: `ds-cli token list --tokens "
     "FILE`."},
    {ErrorId::kKeyFile, ErrorCode::kInvalid, "the file holds no pair of keys",
     "--key or DS_KEY names another file, or the file was changed.",
     "`ds-cli auth create ROLE NAME --key FILE` makes a pair."},
    {ErrorId::kTrustedList, ErrorCode::kInvalid, "the list of trusted keys is wrong",
     "A line is not ROLE NAME PUBLIC-KEY [until DATE], or an entry stands there twice.",
     "Correct the line; `ds-cli auth list --trusted FILE` reads the list as the daemons do."},
    {ErrorId::kSecretExposed, ErrorCode::kDenied, "others may use a secret",
     "The file's mode lets more than its owner read or write it, so it may be no secret any more.",
     "`chmod 600 FILE`. If others could read it, make a new one (`ds-cli auth create ROLE NAME`, "
     "`ds-cli token create ROLE NAME`) and revoke the old."},
    {ErrorId::kSecretUnreadable, ErrorCode::kIo, "a key, list or certificate cannot be read",
     "The file is not there, or the user of the program may not read it.",
     "`ls -l FILE` as that user. `ds-cli node doctor --key FILE --trusted FILE` checks what a "
     "daemon needs."},
    {ErrorId::kCertificateFile, ErrorCode::kInvalid, "a certificate or its key cannot be used",
     "The file is no PEM, has a passphrase, or the key is another certificate's.",
     "`ds-cli auth certificate NAME --cert FILE --key FILE` makes a pair that fits."},
    {ErrorId::kPeerWithoutKey, ErrorCode::kDenied, "the other daemon has no key",
     "It was started with --insecure or without --key, this one with --key.",
     "Start all daemons of a cluster with --key and --trusted, or none; docs/security.md has the "
     "steps."},
    {ErrorId::kPeerUnknown, ErrorCode::kDenied, "the key of the other daemon is not trusted here",
     "It is not in the list of --trusted, has expired, or is of another role.",
     "`ds-cli auth list` on this host; bring the same list to all nodes."},
    {ErrorId::kOwnKeyUnknown, ErrorCode::kDenied, "the own key is not in the list of trusted keys",
     "The list is older than the key, or of another cluster.",
     "Bring the list to which `ds-cli auth create ROLE NAME` added the key to every node."},
    {ErrorId::kKeyWanted, ErrorCode::kDenied, "the cluster talks only to those that have a key",
     "Its daemons were started with --key, and this program has none.",
     "Set DS_KEY and DS_TRUSTED, or --key and --trusted of a daemon; `ds-cli auth create operator "
     "NAME` makes a key."},
    {ErrorId::kNameTaken, ErrorCode::kConflict, "the name has an entry in the list already",
     "Each name has one key of a role, and one token.",
     "Take another name, or revoke the old entry: `ds-cli auth revoke NAME`, `ds-cli token revoke "
     "NAME`."},
    {ErrorId::kNameUnknown, ErrorCode::kNotFound, "the list has no entry of this name",
     "The name is misspelt, or the entry is in another list (--trusted, --tokens).",
     "`ds-cli auth list` and `ds-cli token list` show the names."},
    {ErrorId::kSecretExists, ErrorCode::kConflict, "a key is not overwritten",
     "The file is there already, and what it opens would be lost with it.",
     "Name another file, or move the old one away."},
    {ErrorId::kAuthorityIncomplete, ErrorCode::kNotFound, "half of the authority is missing",
     "An authority is a certificate and its key, and one of both is not there.",
     "Bring the missing file back, or give other names with --ca and --ca-key: `ds-cli auth "
     "certificate NAME --ca FILE --ca-key FILE`."},

    // Checkpoints and backups.
    {ErrorId::kNoCheckpoint, ErrorCode::kNotFound, "the job has no checkpoint that could be used",
     "The first one is written after checkpoint.every_steps, or at the end of the job; what "
     "is damaged does not count.",
     "`ds-cli ckpt list JOB` shows them, `ds-cli job events JOB` why one failed."},
    {ErrorId::kCheckpointUnknown, ErrorCode::kNotFound, "the job has no such checkpoint",
     "It was never committed, or was removed to keep as many as checkpoint.keep says.",
     "`ds-cli ckpt list JOB` shows those that are there; `ds-cli ckpt pin JOB ROUND` keeps one."},
    {ErrorId::kCheckpointDamaged, ErrorCode::kInvalid, "a checkpoint is damaged",
     "A file is missing, cut or changed: a failing disk, or somebody wrote there.",
     "`ds-cli ckpt verify JOB@ROUND` lists all findings. Servers mend it from another copy if "
     "there is one; else `ds-cli ckpt import DIRECTORY` brings a backup."},
    {ErrorId::kCheckpointNotUsable, ErrorCode::kConflict, "the checkpoint is marked as damaged",
     "The servers found damage in it, and no copy to mend it from.",
     "`ds-cli ckpt list JOB` shows which others there are."},
    {ErrorId::kCheckpointMissing, ErrorCode::kNotFound, "the folder holds no checkpoint",
     "The path is wrong, or the checkpoint was removed.",
     "A checkpoint is a folder ckpt-ROUND with the parts of the servers in it: `ls DIR`; `ds-cli "
     "ckpt list JOB` shows those of the cluster."},
    {ErrorId::kCheckpointPinned, ErrorCode::kConflict, "a pinned checkpoint would be discarded",
     "To go back discards what is later, and something later is pinned or used by another job.",
     "`ds-cli ckpt unpin JOB ROUND`, or go back to one that is not older."},
    {ErrorId::kPinsMost, ErrorCode::kConflict, "no more checkpoints can be pinned",
     "Each of them keeps its place on the disks for ever.",
     "`ds-cli ckpt unpin JOB ROUND` for one that is not needed; `ds-cli ckpt backup JOB@ROUND "
     "--to FOLDER` keeps it elsewhere."},
    {ErrorId::kRollbackUnconfirmed, ErrorCode::kConflict,
     "to go back costs training, and wants to be confirmed",
     "What was trained after the checkpoint is trained again, and later checkpoints are discarded.",
     "`ds-cli ckpt rollback JOB ROUND --yes` does it."},
    {ErrorId::kCheckpointNeeded, ErrorCode::kConflict, "the checkpoint is needed",
     "A job that is not over is restored from its newest checkpoint when a server is lost.",
     "`ds-cli ckpt prune JOB --keep 1` leaves the newest; after `ds-cli job cancel JOB` all can "
     "go."},
    {ErrorId::kCheckpointElsewhere, ErrorCode::kNotFound, "the checkpoint is not on this machine",
     "--checkpoint-dir names a folder that the servers have, and this machine does not.",
     "Leave --checkpoint-dir out: it is fetched from the servers then."},
    {ErrorId::kNoFileServer, ErrorCode::kUnreachable, "no server could give the checkpoint",
     "No ps-server is registered, or none with a folder of checkpoints.",
     "`ds-cli node list` shows who is there; start a ps-server with the folder of the checkpoint."},
    {ErrorId::kBackupUnderWay, ErrorCode::kConflict, "another backup is under way in this folder",
     "Only one at a time writes there: a timer and an operator may have met.",
     "Wait until it has ended, and repeat."},
    {ErrorId::kBackupMissing, ErrorCode::kNotFound, "the folder holds no whole backup",
     "The path is wrong, or the only backup there was interrupted.",
     "`ds-cli ckpt list --backup FOLDER` shows what is there."},
    {ErrorId::kImportFolder, ErrorCode::kUsage,
     "the folder is not one checkpoint or one job's backups",
     "Several jobs have backups there, or the folder has another layout than backups have.",
     "`ds-cli ckpt list --backup FOLDER`, then `ds-cli ckpt import FOLDER/JOB-FOLDER`."},
    {ErrorId::kImportFailed, ErrorCode::kInvalid, "the import ended without a checkpoint",
     "The servers could not fetch all of it, or what they fetched was damaged.",
     "`ds-cli job events JOB` says which part failed; `ds-cli ckpt verify --dir DIRECTORY` reads "
     "the source."},
    {ErrorId::kImportAddress, ErrorCode::kUnreachable,
     "it is not known how the servers reach this machine",
     "An import is fetched by the servers from here, and no address of this machine leads to them.",
     "`ds-cli ckpt import DIRECTORY --bind ADDRESS` with an address that they reach."},
    {ErrorId::kCheckpointsDiffer, ErrorCode::kInvalid, "the checkpoints are of different models",
     "They can be compared only if they have the same tables and shards.",
     "`ds-cli ckpt describe JOB@ROUND` shows what each holds."},
    {ErrorId::kCheckpointVersion, ErrorCode::kInvalid,
     "the checkpoint has a format that this version does not read",
     "It was written by a newer version of the programs.",
     "Use programs of that version or a newer one; CHANGELOG.md says which reads what."},
    {ErrorId::kStoreFile, ErrorCode::kInvalid, "the folder of checkpoints has no valid identity",
     "The file by which the servers know a folder again was changed.",
     "Remove the file that the message names, and start the server again: it makes a new one."},
    {ErrorId::kCheckpointFolder, ErrorCode::kIo, "the folder of checkpoints cannot be used",
     "It cannot be made, or the user of ps-server may not write there, or its disk is full.",
     "`ds-cli node doctor --dir DIR` as the user of the server; correct --checkpoint-dir or the "
     "owner of the folder."},
    {ErrorId::kFileServer, ErrorCode::kUnreachable, "a server does not give its files",
     "It ended, or the network to it is broken.",
     "`ds-cli node list` shows whether it is back; the copy goes on where it was when repeated."},
    {ErrorId::kExportTarget, ErrorCode::kUsage, "the folder of an export is there already",
     "An export never overwrites.",
     "`ds-cli ckpt export JOB --to FOLDER` with a folder that does not exist."},

    // ZooKeeper.
    {ErrorId::kZooKeeperAddress, ErrorCode::kInvalid, "this is no address of ZooKeeper",
     "It must be HOST:PORT,HOST:PORT/CHROOT, the chroot once at the end.",
     "Correct --zookeeper, as in zk1:2181,zk2:2181,zk3:2181/ds."},
    {ErrorId::kZooKeeperDenied, ErrorCode::kDenied,
     "ZooKeeper refuses access to the cluster's nodes",
     "They were made by daemons with another --zookeeper-secret, or with one where this has none.",
     "Give all daemons the same file; `ds-cli node doctor --zookeeper-secret FILE` tries it."},
    {ErrorId::kZooKeeperLost, ErrorCode::kUnreachable, "ZooKeeper does not answer",
     "It does not run, has no majority, or the network to it is broken.",
     "`ds-cli node doctor --zookeeper HOST:PORT/ds` says which of its hosts answer."},
    {ErrorId::kZooKeeperSecret, ErrorCode::kInvalid, "the file with ZooKeeper's secret is wrong",
     "It must have one line NAME:PASSWORD.", "`ds-cli auth zookeeper --secret FILE` makes one."},
    {ErrorId::kZooKeeperSession, ErrorCode::kClosed, "the ZooKeeper session has expired",
     "This process was silent for longer than --session-timeout-ms: a busy host, a pause, or the "
     "network.",
     "Daemons register again by themselves. If it recurs, look at the load of the host, or raise "
     "--session-timeout-ms."},
    {ErrorId::kZooKeeperTooLarge, ErrorCode::kInvalid, "ZooKeeper does not store so much",
     "What describes a job has outgrown what one node of ZooKeeper holds, 1 MiB.",
     "Give the job fewer shards or workers."},
    {ErrorId::kZooKeeperContent, ErrorCode::kInvalid, "what stands in ZooKeeper cannot be used",
     "The chroot is another program's, was changed by hand, or was written by another version.",
     "Give the cluster a chroot of its own (--zookeeper HOST:PORT/ds), or the version that wrote "
     "it."},
    {ErrorId::kZooKeeperOutcome, ErrorCode::kMaybeApplied,
     "it is not known whether ZooKeeper stored something",
     "The connection was lost after the request had been sent.",
     "Daemons read it back by themselves; `ds-cli node doctor --zookeeper HOST:PORT/ds` says "
     "whether ZooKeeper answers."},

    // Jobs.
    {ErrorId::kJobUnknown, ErrorCode::kNotFound, "there is no such job",
     "The name or number is misspelt, or the job is another cluster's.",
     "`ds-cli job list` shows all; --coordinator or DS_COORDINATOR says which cluster is asked."},
    {ErrorId::kJobOver, ErrorCode::kConflict, "the job is over",
     "It has succeeded, failed or was cancelled, and is not trained any more.",
     "`ds-cli job restart JOB` begins it again, from its newest checkpoint, as a new job."},
    {ErrorId::kJobEnding, ErrorCode::kConflict, "the job ends soon",
     "All its records are trained; what is left is to gather and to evaluate.",
     "`ds-cli job wait JOB`; then `ds-cli job restart JOB` with more epochs, if wanted."},
    {ErrorId::kJobNotTraining, ErrorCode::kConflict, "the job does not train at present",
     "It is queued, suspended, or is being restored.",
     "`ds-cli job why JOB` says what it waits for; `ds-cli job resume JOB` if it is suspended."},
    {ErrorId::kJobImporting, ErrorCode::kConflict, "the job is being imported",
     "Its checkpoint is still on its way to the servers.",
     "`ds-cli job wait JOB`, or `ds-cli job cancel JOB` to end it."},
    {ErrorId::kJobNotOver, ErrorCode::kConflict, "the job is not over",
     "Only what has ended can be begun again.",
     "`ds-cli job cancel JOB` ends it, `ds-cli job resume JOB` goes on with a suspended one, "
     "`ds-cli ckpt rollback JOB ROUND` takes it back."},
    {ErrorId::kBulkSynchronous, ErrorCode::kConflict,
     "a bulk-synchronous job keeps its number of workers",
     "With training.staleness 0 each worker trains a part that their number settles.",
     "`ds-cli job cancel JOB`, then `ds-cli job restart JOB --set training.workers=N`."},
    {ErrorId::kNoAgentForCheck, ErrorCode::kUnreachable, "no worker can check the job",
     "Model and data are looked at on a worker's node, and no ps-worker with the job's "
     "resources.label is there.",
     "`ds-cli node list` shows who is there; start a ps-worker, or correct resources.label."},
    {ErrorId::kCheckInterrupted, ErrorCode::kUnreachable, "the check of the job was interrupted",
     "The agent that looked at model and data went away.",
     "`ds-cli job submit FILE` again: another agent checks it."},
    {ErrorId::kCheckTimeout, ErrorCode::kTimeout, "the check of the job took too long",
     "The model or the data files are large, or their share is slow.",
     "`ds-cli job submit FILE` again: files are often in memory then. The log of ps-worker on "
     "that node says how far it came."},
    {ErrorId::kCheckBusy, ErrorCode::kUnreachable, "too many jobs are being checked",
     "An agent checks a few jobs at a time, or it stops.",
     "`ds-cli job submit FILE` again in some seconds."},
    {ErrorId::kNoServer, ErrorCode::kUnreachable, "no ps-server is there",
     "None is registered, or none that could take a checkpoint.",
     "`ds-cli node list` shows who is there; start a ps-server."},
    {ErrorId::kWorkerUnknown, ErrorCode::kNotFound, "the job has no such worker",
     "Workers are numbered from 0 to one less than training.workers.",
     "`ds-cli job describe JOB` lists them."},
    {ErrorId::kNoLog, ErrorCode::kNotFound, "the log of the worker cannot be read",
     "The task has not started yet, or the node that it ran on is gone, or its log was removed.",
     "`ds-cli job describe JOB` shows where workers are; logs lie below --state-dir of ps-worker "
     "there."},
    {ErrorId::kAgentSilent, ErrorCode::kUnreachable, "the agent of the worker does not answer",
     "Its node is overloaded or cut off.", "`ds-cli node list` shows its state; ask again."},
    {ErrorId::kJobWaitTimeout, ErrorCode::kTimeout, "the job took longer than the wait",
     "--timeout ends the wait, not the job.",
     "`ds-cli job wait JOB` waits on, `ds-cli job why JOB` says whether something is amiss."},

    // Nodes, scale and the local cluster.
    {ErrorId::kNodeUnknown, ErrorCode::kNotFound, "there is no such node",
     "The name is misspelt, or the node was never registered.",
     "`ds-cli node list` shows the names."},
    {ErrorId::kTooFewServers, ErrorCode::kConflict, "there are not so many servers",
     "Servers that were drained can be taken back; new ones need a host.",
     "`scripts/scale_out` brings another host in; `ds-cli node list` shows who is there."},
    {ErrorId::kWaitTimeout, ErrorCode::kTimeout, "it goes on, and took longer than the wait",
     "--timeout ends the wait, not what was begun.",
     "`ds-cli node list` and `ds-cli job describe JOB` show how far it is."},
    {ErrorId::kClusterRuns, ErrorCode::kConflict, "a local cluster runs",
     "One of this folder, or another that the user started, is not stopped.",
     "`ds-cli local status` shows it, `ds-cli local down` stops it, `ds-cli local up --repair` "
     "starts what died. A second one needs another --dir and DS_STATE."},
    {ErrorId::kNoLocalCluster, ErrorCode::kNotFound, "there is no local cluster",
     "None was started here, or its folder is another one.",
     "`ds-cli local up` starts one; --dir names another folder."},
    {ErrorId::kLocalBusy, ErrorCode::kConflict, "another `ds-cli local` is at work",
     "It starts or stops the same cluster in another terminal.",
     "Wait until it has ended; `ds-cli local status` shows how far it is."},
    {ErrorId::kProgramsMissing, ErrorCode::kNotFound, "the daemons are not beside ds-cli",
     "They are not built, or ds-cli was copied alone.",
     "`scripts/quickstart` builds all; packages install them into /usr/bin."},
    {ErrorId::kZooKeeperMissing, ErrorCode::kNotFound, "ZooKeeper cannot be started",
     "A local cluster starts its own, and Java or ZooKeeper's files are not installed.",
     "`apt-get install zookeeper default-jre-headless`, or `scripts/quickstart`, which "
     "does."},
    {ErrorId::kProcessEnded, ErrorCode::kInternal, "a process of the local cluster ended at once",
     "Its last lines are above: often a port that is taken, or a folder that cannot be written.",
     "Read its log below logs/ of the cluster's folder; `ds-cli local down`, then `ds-cli local "
     "up`."},
    {ErrorId::kLocalTimeout, ErrorCode::kTimeout, "the local cluster did not come up in time",
     "The machine is busy, or one of the processes hangs.",
     "`ds-cli local up --repair --timeout 2m`; `ds-cli local status` shows what is missing."},
    {ErrorId::kLocalFileDamaged, ErrorCode::kInvalid, "the local cluster's own file is damaged",
     "Something changed it, or the disk was full when it was written.",
     "`ds-cli local down --purge` removes the cluster, checkpoints included, and `ds-cli local "
     "up` makes a new one."},
    {ErrorId::kProcessesSurvive, ErrorCode::kInternal, "processes of the local cluster do not end",
     "They hang in the kernel, mostly on a disk or a share that does not answer.",
     "Look at them with `ps -l PID`, and at `dmesg`; then `ds-cli local down` again."},

    // Workers, models and training.
    {ErrorId::kModelFile, ErrorCode::kInvalid, "the file of the model cannot be loaded",
     "model.file is not there on the worker's node, is no TorchScript file, or needs operators "
     "that this LibTorch lacks.",
     "Write it with torch.jit.script(model).save(PATH), not frozen; docs/torchscript.md has an "
     "example."},
    {ErrorId::kModelParameters, ErrorCode::kInvalid,
     "the parameters of the model cannot be trained",
     "One is not of 32-bit floats, has no elements, shares memory in another shape, or there are "
     "none.",
     "Save model.float() without freezing; docs/torchscript.md says what is taken."},
    {ErrorId::kModelOutput, ErrorCode::kInvalid,
     "the model does not run on the data, or its output does not fit the loss",
     "It was tried on the first records: forward() failed, or gave a tensor of another type or "
     "shape.",
     "cross_entropy wants [records, classes], other losses one number a record (`ds-cli job "
     "explain training.loss`). Then `ds-cli job submit FILE --dry-run`."},
    {ErrorId::kModelShape, ErrorCode::kInvalid,
     "the layers of the model are not possible, or do not fit the data",
     "The input of the model has another size than a record, or a layer is empty or too small.",
     "`ds-cli job explain model` says what each type wants; correct layers or input_shape."},
    {ErrorId::kPrecision, ErrorCode::kInvalid, "the workers cannot compute in training.precision",
     "The processor or GPU of the worker has no arithmetic of that kind.",
     "Set training.precision to auto or fp32 (`ds-cli job explain training.precision`)."},
    {ErrorId::kNotFinite, ErrorCode::kInvalid,
     "the training diverged: a loss or gradient is not finite",
     "The learning rate is too high, a record holds extreme values, or the precision is too low; "
     "training.on_nonfinite: stop ends the job then.",
     "`ds-cli job events JOB` says where; go back with `ds-cli ckpt rollback JOB ROUND`, or "
     "`ds-cli job restart JOB --set optimizer.learning_rate=RATE`."},
    {ErrorId::kInitialValues, ErrorCode::kInvalid, "a file of checkpoint.load cannot be read",
     "It is no safetensors file, is cut, or holds tensors of types that cannot be loaded.",
     "F32, F16, BF16 and I64 tensors of a .safetensors file are taken (`ds-cli job explain "
     "checkpoint.load`)."},
    {ErrorId::kStateDirectoryTaken, ErrorCode::kConflict,
     "another ps-worker uses the state directory",
     "Two agents with the same --state-dir would mix their tasks.",
     "Give each its own --state-dir, or stop the other one."},
    {ErrorId::kRetentionDirectory, ErrorCode::kDenied,
     "the folder for retained pushes belongs to somebody else",
     "Another user made it before, or its mode lets others read it.",
     "Choose another with --retention-dir, or remove it: `ls -ld DIR` shows whose it is."},
    {ErrorId::kRingMemory, ErrorCode::kIo, "there is no memory for retained pushes",
     "Rings lie in /dev/shm: resources.retention_mebibytes for each worker of the node.",
     "`df -h /dev/shm`; enlarge it, run fewer workers there (--slots), or lower "
     "resources.retention_mebibytes."},
    {ErrorId::kRingTooSmall, ErrorCode::kInvalid, "a push does not fit into the retention ring",
     "The model is large for the ring, or a push carries more than sparsification should leave.",
     "`ds-cli job restart JOB --set resources.retention_mebibytes=N`."},
    {ErrorId::kNoGpu, ErrorCode::kInvalid, "a task cannot compute on a GPU of its node",
     "The job has resources.gpus, and the worker's ps-task was built without GPU code, its "
     "LibTorch is for CPUs, or the driver is too old for them.",
     "`ps-task --devices` on that node says what is missing; `ds-cli node list -o wide` who has "
     "GPUs. Or set resources.gpus to 0."},

    // Disks and files.
    {ErrorId::kDiskFull, ErrorCode::kIo, "the disk is full",
     "A write found no place, or a checkpoint would not find it.",
     "`df -h DIR`. `ds-cli ckpt prune JOB --keep 1` frees checkpoints; checkpoint.keep says how "
     "many a job holds."},
    {ErrorId::kFileDenied, ErrorCode::kDenied, "a file or folder may not be written",
     "It belongs to another user, or the file system is read-only.",
     "`ls -ld FOLDER`; call the command as its owner, or name another place."},
    {ErrorId::kFileNotWritten, ErrorCode::kIo, "a file cannot be written or removed",
     "The message has the reason of the system.", "`ls -ld FOLDER` and `df -h FOLDER`."},
    {ErrorId::kFolderNotMade, ErrorCode::kIo, "a folder cannot be made",
     "A part of its path is a file, belongs to another user, or its disk is full.",
     "`ls -ld` of the folder above it; make it by hand for the user of the program, or name "
     "another."},
    {ErrorId::kFileUnreadable, ErrorCode::kIo, "a file or folder cannot be read",
     "The message has the reason of the system.",
     "`ls -l FILE` as the user of the program; `dmesg` shows errors of the disk."},

    // Messages between the programs.
    {ErrorId::kControlMessage, ErrorCode::kInvalid, "a message between daemons is refused",
     "The other side is of a version that cannot be talked to, or is no daemon of the cluster.",
     "`ds-cli node list -o wide` shows versions: upgrade all, with `scripts/rolling_upgrade`."},
    {ErrorId::kDataMessage, ErrorCode::kInvalid, "a message with parameters is refused",
     "It is of another version, or was damaged on its way.",
     "`ds-cli node list -o wide` shows versions; workers and servers must be of versions that "
     "fit."},
    {ErrorId::kMessageTooLong, ErrorCode::kInvalid, "a message is too long to be sent",
     "What describes the job, or one answer, is larger than any message may be.",
     "Give the job fewer shards or workers."},
};

constexpr ErrorGroup kGroups[] = {
    {0, "Of any kind"},
    {100, "Command lines and configuration"},
    {200, "The job file"},
    {300, "Data files"},
    {400, "The network, and finding the coordinator"},
    {500, "Keys, tokens and certificates"},
    {600, "Checkpoints and backups"},
    {700, "ZooKeeper"},
    {800, "Jobs"},
    {900, "Nodes, scale and the local cluster"},
    {1000, "Workers, models and training"},
    {1100, "Disks and files"},
    {1200, "Messages between the programs"},
};

static_assert(std::ranges::is_sorted(kEntries, std::ranges::less_equal(), &ErrorEntry::id),
              "entries are sorted by number, and no number is given twice");
static_assert(GenericId(ErrorCode::kInternal) == ErrorId::kInternal &&
                  GenericId(ErrorCode::kIo) == ErrorId::kIo,
              "the first entries are those of each ErrorCode");

}  // namespace

std::span<const ErrorEntry> ErrorCatalogue() { return kEntries; }

std::span<const ErrorGroup> ErrorGroups() { return kGroups; }

const ErrorEntry* FindError(ErrorId id) {
  const auto* const found = std::ranges::lower_bound(kEntries, id, {}, &ErrorEntry::id);
  return found != std::end(kEntries) && found->id == id ? found : nullptr;
}

std::optional<ErrorId> ParseErrorId(std::string_view text) {
  const auto skip = [&text](std::string_view upper) {
    if (text.size() < upper.size()) return;
    for (std::size_t i = 0; i < upper.size(); ++i) {
      const char c = text[i];
      if ((c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c) != upper[i]) return;
    }
    text.remove_prefix(upper.size());
  };
  skip("DS-");
  skip("E");
  std::uint16_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || text.size() > 4 || number == 0) return std::nullopt;
  return static_cast<ErrorId>(number);
}

}  // namespace ps
