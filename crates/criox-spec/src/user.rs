//! Who the first process is: numbers from the request, or names looked up in the image's own files.
//!
//! One resolution at creation, kept as numbers: a restarted container must never become somebody else because the
//! image's files changed. The files are hostile: a line that is not well formed is skipped, a string of digits is a
//! number or an error and never a name (else an image maps `99999999999` to root).

use criox_cri::v1;

use crate::error::SpecError;
use crate::input::{EffectiveUser, SpecInput};

/// `(uid_t)-1` means "don't change" to chown(2) and setresuid(2).
const MAX_ID: i64 = 4_294_967_294;

/// One entry of `/etc/passwd`, see passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passwd<'a> {
    /// Login name.
    pub(crate) name: &'a str,
    /// User ID.
    pub(crate) uid: u32,
    /// Primary group ID.
    pub(crate) gid: u32,
    /// Home directory.
    pub(crate) home: &'a str,
}

/// One entry of `/etc/group`, see group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// What the user resolved to.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedUser<'a> {
    pub(crate) effective: EffectiveUser,
    /// The entry in the image's passwd file, if there is one.
    pub(crate) entry: Option<Passwd<'a>>,
    pub(crate) group_known: bool,
}

/// The lines of a file that are text; others are skipped.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

fn passwd_entries(bytes: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    lines(bytes).filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        let _comment = fields.next();
        let home = fields.next().unwrap_or("");
        Some(Passwd { name, uid, gid, home })
    })
}

fn group_entries(bytes: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(bytes).filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let gid = number(fields.next()?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

/// Digits only, and in range; the empty string is none.
fn number(text: &str) -> Option<u32> {
    if !is_digits(text) {
        return None;
    }
    text.parse::<u32>().ok().filter(|id| i64::from(*id) <= MAX_ID)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What a user string names: an ID or a name.
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

fn wanted<'a>(text: &'a str, field: &str) -> Result<Wanted<'a>, SpecError> {
    if is_digits(text) {
        return number(text).map(Wanted::Id).ok_or_else(|| {
            SpecError::invalid(field, format!("{text:?} is out of range: at most {MAX_ID} is possible"))
        });
    }
    // "-1", "+0" and " 0" are numbers to some readers and names to others: nobody's login name begins so.
    let odd = text.is_empty()
        || text.starts_with(['-', '+'])
        || text.chars().any(|c| c.is_whitespace() || c.is_control() || c == ':' || c == ',');
    if odd {
        return Err(SpecError::invalid(
            field,
            format!("{text:?} is neither a number nor a user or group name"),
        ));
    }
    Ok(Wanted::Name(text))
}

fn id_of(value: i64, field: &str) -> Result<u32, SpecError> {
    u32::try_from(value).ok().filter(|id| i64::from(*id) <= MAX_ID).ok_or_else(|| {
        SpecError::invalid(field, format!("{value} is out of range: 0 to {MAX_ID} are possible"))
    })
}

/// The refusals that RunPodSandbox owes: a group without a user.
///
/// # Errors
/// Names `linux.security_context.run_as_group`, or an ID that is out of range.
pub fn sandbox_user_check(config: &v1::PodSandboxConfig) -> Result<(), SpecError> {
    let Some(context) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else {
        return Ok(());
    };
    if let Some(user) = &context.run_as_user {
        id_of(user.value, "linux.security_context.run_as_user")?;
    }
    if let Some(group) = &context.run_as_group {
        id_of(group.value, "linux.security_context.run_as_group")?;
        if context.run_as_user.is_none() {
            return Err(SpecError::invalid(
                "linux.security_context.run_as_group",
                "needs run_as_user beside it",
            ));
        }
    }
    for (index, value) in context.supplemental_groups.iter().enumerate() {
        id_of(*value, &format!("linux.security_context.supplemental_groups[{index}]"))?;
    }
    if v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).is_err() {
        let reason = format!("unknown value {}", context.supplemental_groups_policy);
        return Err(SpecError::invalid("linux.security_context.supplemental_groups_policy", reason));
    }
    Ok(())
}

/// The identity of the container's first process.
///
/// # Errors
/// A refusal with the field; of kind [`crate::ErrorKind::Image`] when the image has no such user or group.
pub fn resolve_user(input: &SpecInput<'_>) -> Result<EffectiveUser, SpecError> {
    resolve(input).map(|resolved| resolved.effective)
}

pub(crate) fn resolve<'a>(input: &SpecInput<'a>) -> Result<ResolvedUser<'a>, SpecError> {
    let passwd = input.passwd.unwrap_or(b"");
    let group = input.group.unwrap_or(b"");
    let nothing = v1::LinuxContainerSecurityContext::default();
    let context =
        input.container.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&nothing);
    let request = UserRequest::new(context, &input.image.user)?;

    let entry = match &request.user {
        Wanted::Id(uid) => passwd_entries(passwd).find(|entry| entry.uid == *uid),
        Wanted::Name(name) => {
            let found = passwd_entries(passwd).find(|entry| entry.name == *name);
            Some(found.ok_or_else(|| {
                SpecError::image(
                    request.user_field,
                    format!("the image has no user {name:?} in its /etc/passwd"),
                )
            })?)
        }
    };
    let uid = match (&request.user, &entry) {
        (Wanted::Id(uid), _) => *uid,
        (Wanted::Name(_), found) => found.as_ref().map_or(0, |entry| entry.uid),
    };
    let gid = match &request.group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(Wanted::Id(gid)) => *gid,
        Some(Wanted::Name(name)) => group_entries(group)
            .find(|entry| entry.name == *name)
            .map(|entry| entry.gid)
            .ok_or_else(|| {
                SpecError::image(
                    request.group_field,
                    format!("the image has no group {name:?} in its /etc/group"),
                )
            })?,
    };

    let mut groups = vec![gid];
    if policy(context)? == v1::SupplementalGroupsPolicy::Merge
        && let Some(entry) = &entry
    {
        for group in group_entries(group) {
            if group.members.split(',').any(|member| member.trim() == entry.name) {
                groups.push(group.gid);
            }
        }
    }
    for (index, value) in context.supplemental_groups.iter().enumerate() {
        let field = format!("linux.security_context.supplemental_groups[{index}]");
        groups.push(id_of(*value, &field)?);
    }
    dedupe(&mut groups);
    let group_known = group_entries(group).any(|entry| entry.gid == gid);
    Ok(ResolvedUser {
        effective: EffectiveUser { uid, gid, supplemental_groups: groups },
        entry,
        group_known,
    })
}

fn policy(context: &v1::LinuxContainerSecurityContext) -> Result<v1::SupplementalGroupsPolicy, SpecError> {
    v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).map_err(|_| {
        SpecError::invalid(
            "linux.security_context.supplemental_groups_policy",
            format!("unknown policy {}", context.supplemental_groups_policy),
        )
    })
}

/// Keeps the first of each, in order.
fn dedupe(groups: &mut Vec<u32>) {
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
}

struct UserRequest<'a> {
    user: Wanted<'a>,
    user_field: &'static str,
    group: Option<Wanted<'a>>,
    group_field: &'static str,
}

impl<'a> UserRequest<'a> {
    /// The request's user sets the image's aside altogether, its group too.
    fn new(context: &'a v1::LinuxContainerSecurityContext, image: &'a str) -> Result<Self, SpecError> {
        const USER: &str = "linux.security_context.run_as_user";
        const NAME: &str = "linux.security_context.run_as_username";
        const GROUP: &str = "linux.security_context.run_as_group";
        const IMAGE: &str = "image.user";
        let (user, user_field, mut group) = match (&context.run_as_user, context.run_as_username.as_str()) {
            (Some(_), name) if !name.is_empty() => {
                return Err(SpecError::invalid(NAME, "excludes run_as_user: give one of them"));
            }
            (Some(user), _) => (Wanted::Id(id_of(user.value, USER)?), USER, None),
            (None, "") if image.is_empty() => (Wanted::Id(0), IMAGE, None),
            (None, "") => {
                let (user, group) = image_user(image)?;
                (user, IMAGE, group)
            }
            (None, name) => (wanted(name, NAME)?, NAME, None),
        };
        let mut group_field = IMAGE;
        if let Some(value) = &context.run_as_group {
            if context.run_as_user.is_none() && context.run_as_username.is_empty() {
                return Err(SpecError::invalid(GROUP, "needs run_as_user or run_as_username beside it"));
            }
            group = Some(Wanted::Id(id_of(value.value, GROUP)?));
            group_field = GROUP;
        }
        Ok(Self { user, user_field, group, group_field })
    }
}

/// `user`, `user:group`, `user:`; an empty user is root, as in image configurations.
fn image_user(text: &str) -> Result<(Wanted<'_>, Option<Wanted<'_>>), SpecError> {
    const FIELD: &str = "image.user";
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() { Wanted::Id(0) } else { wanted(user, FIELD)? };
    let group = if group.is_empty() { None } else { Some(wanted(group, FIELD)?) };
    Ok((user, group))
}

/// The passwd file with a line for a user that has none, so that programs which ask for their own name find one.
/// None when there is no file, the user has an entry, or a value would break the line.
pub(crate) fn passwd_with_entry(file: Option<&[u8]>, user: &ResolvedUser<'_>, home: &str) -> Option<Vec<u8>> {
    let file = file?;
    if user.entry.is_some() || home.contains([':', '\n', '\r', '\0']) {
        return None;
    }
    // The default name may be taken by another ID in the image.
    let name = if passwd_entries(file).any(|entry| entry.name == "default") {
        user.effective.uid.to_string()
    } else {
        "default".to_owned()
    };
    let line =
        format!("{name}:x:{}:{}:{name} user:{home}:/sbin/nologin\n", user.effective.uid, user.effective.gid);
    Some(with_line(file, &line))
}

/// The group file with a line for a primary group that has none.
pub(crate) fn group_with_entry(file: Option<&[u8]>, user: &ResolvedUser<'_>) -> Option<Vec<u8>> {
    let file = file?;
    if user.group_known {
        return None;
    }
    let gid = user.effective.gid;
    Some(with_line(file, &format!("{gid}:x:{gid}:\n")))
}

fn with_line(file: &[u8], line: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(file.len() + line.len() + 1);
    bytes.extend_from_slice(file);
    if !file.is_empty() && !file.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(line.as_bytes());
    bytes
}
