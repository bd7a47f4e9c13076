//! The objects as they were seen last.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::domains::Usable;
use super::shown::{Shown, Told};
use crate::api::RpopRecordSpec;
use crate::api::work::Sources;

/// A maildrop: host, port, user name.
pub(super) type Maildrop = (Arc<str>, u16, Arc<str>);

/// A record as it was seen last.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) uid: Arc<str>,
    pub(super) version: Arc<str>,
    /// A write of ours came too late: somebody else wrote first, and that is
    /// not seen yet.
    pub(super) outrun: bool,
    pub(super) generation: i64,
    /// It has a deletionTimestamp.
    pub(super) deleting: bool,
    /// The spec, or why it cannot be read.
    pub(super) spec: Result<Arc<RpopRecordSpec>, Arc<str>>,
    /// What its status says.
    pub(super) shown: Shown,
    /// What we said last, if that has not been seen yet.
    pub(super) told: Option<Told>,
    /// The domain of its account, in lower case.
    pub(super) domain: Option<Arc<str>>,
    pub(super) maildrop: Option<Maildrop>,
}

/// A domain as it was seen last.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    pub(super) created: Option<Time>,
    pub(super) aliases: Vec<Arc<str>>,
    /// What records need of it, or what is wrong with it.
    pub(super) usable: Result<Arc<Usable>, Vec<String>>,
    pub(super) shown: Shown,
    pub(super) told: Option<Told>,
    /// Grows with every change that concerns records.
    pub(super) revision: u64,
}

/// A namespace as it was seen last.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) terminating: bool,
}

/// What the settings say to the controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rules {
    pub(super) use_apop: bool,
    pub(super) sources: Sources,
    /// Sessions to one host; 0: no limit.
    pub(super) host_connections: u32,
    pub(super) main_domain: Option<String>,
}

/// The settings as they were seen last.
#[derive(Debug)]
pub(super) struct SettingsSeen {
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// What is wrong with them.
    pub(super) faults: Vec<String>,
    pub(super) shown: Shown,
    pub(super) told: Option<Told>,
}
