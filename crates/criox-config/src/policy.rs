//! `policy.json` (containers-policy.json(5)): which images may be used.
//!
//! Signatures are not verified yet: a requirement that needs one makes the verdict [`Verdict::NeedsSignature`], and the
//! pull must fail.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::document::read;
use crate::problem::{Origin, Problems};

/// One requirement; all of a list must accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `insecureAcceptAnything`.
    InsecureAcceptAnything,
    /// `reject`.
    Reject,
    /// `signedBy`: an OpenPGP signature.
    SignedBy,
    /// `signedBaseLayer`: never accepts, it was never implemented anywhere.
    SignedBaseLayer,
    /// `sigstoreSigned`.
    SigstoreSigned,
}

impl Requirement {
    /// As written in the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::InsecureAcceptAnything => "insecureAcceptAnything",
            Self::Reject => "reject",
            Self::SignedBy => "signedBy",
            Self::SignedBaseLayer => "signedBaseLayer",
            Self::SigstoreSigned => "sigstoreSigned",
        }
    }
}

/// What the policy says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be used as it is.
    Accept,
    /// It may not be used.
    Reject {
        /// The scope of the policy that says so.
        scope: String,
    },
    /// It may be used if a signature proves it.
    NeedsSignature {
        /// The scope of the policy that says so.
        scope: String,
        /// The requirement's type, `signedBy` or `sigstoreSigned`.
        requirement: &'static str,
    },
}

/// A parsed `policy.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

impl Policy {
    /// The file that counts: `explicit`, else the one of the user whose `home` this is, else the system's.
    pub fn path(explicit: Option<&Path>, home: Option<&Path>) -> PathBuf {
        if let Some(path) = explicit {
            return path.to_owned();
        }
        let own =
            home.filter(|home| home.is_absolute()).map(|home| home.join(".config/containers/policy.json"));
        own.filter(|path| path.exists()).unwrap_or_else(|| "/etc/containers/policy.json".into())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It doesn't exist (there is no default policy), or mistakes in it.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match read(path)? {
            Some(bytes) => Self::parse(path, &bytes),
            None => Err(Problems::one(
                Origin::whole(path),
                "",
                "does not exist, and no image may be used without a signature policy: create it or set signature_policy",
            )),
        }
    }

    /// Reads bytes; `path` is for messages. Unknown and repeated names are mistakes, as a policy that is not
    /// understood in full protects nothing.
    ///
    /// # Errors
    /// Every mistake.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Problems> {
        let tree: Json = serde_json::from_slice(bytes).map_err(|e| {
            Problems::one(Origin::File { path: path.to_owned(), line: e.line() }, "", e.to_string())
        })?;
        let mut reader = Reader { path, problems: Problems::default() };
        let policy = reader.policy(&tree);
        reader.problems.or(policy)
    }

    /// The requirements for an image of a registry, with the scope that they stand under. `tag_or_digest` is `:tag` or
    /// `@digest` of the name as asked for, not as rewritten.
    pub fn requirements(
        &self,
        host: &str,
        repository: &str,
        tag_or_digest: &str,
    ) -> (&[Requirement], String) {
        if let Some(docker) = self.transports.get("docker") {
            for scope in scopes(host, repository, tag_or_digest) {
                if let Some(list) = docker.get(&scope) {
                    return (list, format!("docker:{scope}"));
                }
            }
        }
        (&self.default, "default".to_owned())
    }

    /// What the policy says about an image of a registry; parameters as for [`Self::requirements`].
    pub fn evaluate(&self, host: &str, repository: &str, tag_or_digest: &str) -> Verdict {
        let (list, scope) = self.requirements(host, repository, tag_or_digest);
        let rejects = |r: &&Requirement| matches!(r, Requirement::Reject | Requirement::SignedBaseLayer);
        if list.is_empty() || list.iter().any(|r| rejects(&r)) {
            return Verdict::Reject { scope };
        }
        match list.iter().find(|r| !matches!(r, Requirement::InsecureAcceptAnything)) {
            Some(requirement) => Verdict::NeedsSignature { scope, requirement: requirement.as_str() },
            None => Verdict::Accept,
        }
    }
}

/// The scopes of a name, the most specific first.
fn scopes(host: &str, repository: &str, tag_or_digest: &str) -> Vec<String> {
    let name = format!("{host}/{repository}");
    let mut scopes = vec![format!("{name}{tag_or_digest}")];
    let mut parent = name.as_str();
    scopes.push(parent.to_owned());
    while let Some((shorter, _)) = parent.rsplit_once('/') {
        scopes.push(shorter.to_owned());
        parent = shorter;
    }
    let mut domain = host.split(':').next().unwrap_or(host);
    while let Some((_, shorter)) = domain.split_once('.') {
        scopes.push(format!("*.{shorter}"));
        domain = shorter;
    }
    scopes.push(String::new());
    scopes
}

/// JSON in which no object has a name twice.
#[derive(Debug)]
enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Null, numbers and booleans, which no policy has.
    Other,
}

impl Json {
    fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_str<E>(self, v: &str) -> Result<Json, E> {
        Ok(Json::Text(v.to_owned()))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format_args!("\"{key}\" stands twice in one object")));
            }
            fields.push((key, value));
        }
        Ok(Json::Object(fields))
    }
}

struct Reader<'a> {
    path: &'a Path,
    problems: Problems,
}

impl Reader<'_> {
    fn problem(&mut self, at: &str, message: impl Into<String>) {
        self.problems.add(Origin::whole(self.path), at, message);
    }

    fn fields<'j>(&mut self, at: &str, value: &'j Json) -> &'j [(String, Json)] {
        match value {
            Json::Object(fields) => fields,
            _ => {
                self.problem(at, "must be an object");
                &[]
            }
        }
    }

    fn only(&mut self, at: &str, value: &Json, known: &[&str]) {
        for (name, _) in self.fields(at, value) {
            if !known.contains(&name.as_str()) {
                self.problem(at, format!("\"{name}\" is unknown here"));
            }
        }
    }

    fn policy(&mut self, tree: &Json) -> Policy {
        self.only("", tree, &["default", "transports"]);
        let mut policy = Policy::default();
        match tree.get("default") {
            Some(list) => policy.default = self.list("default", list),
            None => self.problem("default", "must be there"),
        }
        let Some(transports) = tree.get("transports") else { return policy };
        for (transport, scopes) in self.fields("transports", transports) {
            let at = format!("transports.{transport}");
            let mut by_scope = BTreeMap::new();
            for (scope, list) in self.fields(&at, scopes) {
                by_scope.insert(scope.clone(), self.list(&format!("{at}.\"{scope}\""), list));
            }
            policy.transports.insert(transport.clone(), by_scope);
        }
        policy
    }

    fn list(&mut self, at: &str, value: &Json) -> Vec<Requirement> {
        match value {
            Json::List(items) if !items.is_empty() => items
                .iter()
                .enumerate()
                .filter_map(|(i, item)| self.requirement(&format!("{at}[{i}]"), item))
                .collect(),
            Json::List(_) => {
                self.problem(at, "must not be empty: use \"reject\" or \"insecureAcceptAnything\"");
                Vec::new()
            }
            _ => {
                self.problem(at, "must be a list");
                Vec::new()
            }
        }
    }

    fn requirement(&mut self, at: &str, value: &Json) -> Option<Requirement> {
        let Some(Json::Text(kind)) = value.get("type") else {
            self.problem(at, "must be an object with a \"type\"");
            return None;
        };
        match kind.as_str() {
            "insecureAcceptAnything" => {
                self.only(at, value, &["type"]);
                Some(Requirement::InsecureAcceptAnything)
            }
            "reject" => {
                self.only(at, value, &["type"]);
                Some(Requirement::Reject)
            }
            "signedBy" => {
                self.signed_by(at, value);
                Some(Requirement::SignedBy)
            }
            "signedBaseLayer" => {
                self.only(at, value, &["type", "baseLayerIdentity"]);
                if value.get("baseLayerIdentity").is_none() {
                    self.problem(at, "\"baseLayerIdentity\" must be there");
                }
                Some(Requirement::SignedBaseLayer)
            }
            "sigstoreSigned" => {
                self.sigstore(at, value);
                Some(Requirement::SigstoreSigned)
            }
            other => {
                self.problem(at, format!("\"{other}\" is not a type of requirement"));
                None
            }
        }
    }

    fn signed_by(&mut self, at: &str, value: &Json) {
        let sources = ["keyPath", "keyPaths", "keyData"];
        self.only(at, value, &[&["type", "keyType", "signedIdentity"], &sources[..]].concat());
        let kinds = ["GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"];
        match value.get("keyType") {
            Some(Json::Text(kind)) if kinds.contains(&kind.as_str()) => {}
            _ => self.problem(at, format!("\"keyType\" must be one of {}", kinds.join(", "))),
        }
        self.count(at, value, &sources, 1, 1);
        self.identity(at, value);
    }

    fn sigstore(&mut self, at: &str, value: &Json) {
        let keys = ["keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki"];
        let rekor =
            ["rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"];
        self.only(at, value, &[&["type", "signedIdentity"], &keys[..], &rekor[..]].concat());
        self.count(at, value, &keys, 1, 1);
        self.count(at, value, &rekor, 0, 1);
        let has_rekor = rekor.iter().any(|name| value.get(name).is_some());
        if let Some(fulcio) = value.get("fulcio") {
            let at = format!("{at}.fulcio");
            self.only(&at, fulcio, &["caPath", "caData", "oidcIssuer", "subjectEmail"]);
            self.count(&at, fulcio, &["caPath", "caData"], 1, 1);
            self.count(&at, fulcio, &["oidcIssuer"], 1, 1);
            self.count(&at, fulcio, &["subjectEmail"], 1, 1);
            if !has_rekor {
                self.problem(&at, "needs a Rekor key");
            }
        }
        if let Some(pki) = value.get("pki") {
            let at = format!("{at}.pki");
            let roots = ["caRootsPath", "caRootsData"];
            let between = ["caIntermediatesPath", "caIntermediatesData"];
            let subjects = ["subjectEmail", "subjectHostname"];
            self.only(&at, pki, &[&roots[..], &between[..], &subjects[..]].concat());
            self.count(&at, pki, &roots, 1, 1);
            self.count(&at, pki, &between, 0, 1);
            self.count(&at, pki, &subjects, 1, 2);
            if has_rekor {
                self.problem(&at, "can't be used together with a Rekor key");
            }
        }
        self.identity(at, value);
    }

    fn count(&mut self, at: &str, value: &Json, names: &[&str], least: usize, most: usize) {
        let found = names.iter().filter(|name| value.get(name).is_some()).count();
        if found < least || found > most {
            let how_many = match (least, most) {
                (1, 1) => "exactly one",
                (0, _) => "at most one",
                _ => "at least one",
            };
            self.problem(at, format!("{how_many} of {} must be there", names.join(", ")));
        }
    }

    fn identity(&mut self, at: &str, value: &Json) {
        let Some(identity) = value.get("signedIdentity") else { return };
        let at = format!("{at}.signedIdentity");
        let Some(Json::Text(kind)) = identity.get("type") else {
            return self.problem(&at, "must be an object with a \"type\"");
        };
        let fields: &[&str] = match kind.as_str() {
            "matchExact" | "matchRepoDigestOrExact" | "matchRepository" => &[],
            "exactReference" => &["dockerReference"],
            "exactRepository" => &["dockerRepository"],
            "remapIdentity" => &["prefix", "signedPrefix"],
            other => return self.problem(&at, format!("\"{other}\" is not a way to match an identity")),
        };
        self.only(&at, identity, &[&["type"], fields].concat());
        for field in fields {
            self.count(&at, identity, &[field], 1, 1);
        }
    }
}

#[cfg(test)]
mod tests;
