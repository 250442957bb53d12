//! The signal that asks a container to end: CRI's, else the image's, else SIGTERM.

use criox_cri::v1;

use crate::error::Warning;

/// A signal by number and OCI name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal {
    number: i32,
}

const TERM: StopSignal = StopSignal { number: 15 };
/// glibc's and musl's first real-time signal that programs may use; the kernel's 32 and 33 are the libraries' own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names by number from 1, on x86_64 and aarch64.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl Default for StopSignal {
    fn default() -> Self {
        TERM
    }
}

impl StopSignal {
    /// Parses `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`; none when it is no signal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse().ok()?;
            return (1..=RTMAX).contains(&number).then_some(Self { number });
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(index) = NAMES.iter().position(|known| *known == name) {
            return i32::try_from(index + 1).ok().map(|number| Self { number });
        }
        match name {
            "CLD" => return Some(Self { number: 17 }),
            "IOT" => return Some(Self { number: 6 }),
            "POLL" => return Some(Self { number: 29 }),
            _ => {}
        }
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            RTMIN + offset(rest, '+')?
        } else {
            RTMAX - offset(name.strip_prefix("RTMAX")?, '-')?
        };
        (RTMIN..=RTMAX).contains(&number).then_some(Self { number })
    }

    /// From a recorded number; what is no signal counts as SIGTERM.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        if (1..=RTMAX).contains(&number) { Self { number } } else { TERM }
    }

    /// The number for kill(2).
    #[must_use]
    pub fn number(self) -> i32 {
        self.number
    }

    /// The name: `SIGTERM`, `SIGRTMIN+3`.
    #[must_use]
    pub fn name(self) -> String {
        match usize::try_from(self.number - 1).ok().and_then(|index| NAMES.get(index)) {
            Some(name) => format!("SIG{name}"),
            None if self.number == RTMIN => "SIGRTMIN".to_owned(),
            None if self.number == RTMAX => "SIGRTMAX".to_owned(),
            None if self.number > RTMIN => format!("SIGRTMIN+{}", self.number - RTMIN),
            None => self.number.to_string(),
        }
    }

    /// The value for `ContainerStatus.stop_signal`.
    #[must_use]
    pub fn to_cri(self) -> v1::Signal {
        let name = self.name();
        let cri = match name.strip_prefix("SIGRTMIN+").and_then(|text| text.parse::<i32>().ok()) {
            // CRI counts the upper half down from the last one.
            Some(above) if above > 15 => format!("SIGNAL_SIGRTMAXMINUS{}", RTMAX - RTMIN - above),
            Some(above) => format!("SIGNAL_SIGRTMINPLUS{above}"),
            None => format!("SIGNAL_{name}"),
        };
        v1::Signal::from_str_name(&cri).unwrap_or(v1::Signal::RuntimeDefault)
    }

    /// The signal that a CRI value stands for; none for "runtime default" and unknown numbers.
    #[must_use]
    pub fn from_cri(value: i32) -> Option<Self> {
        let signal = v1::Signal::try_from(value).ok()?;
        let name = signal.as_str_name().strip_prefix("SIGNAL_SIG")?;
        Self::parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
    }
}

fn offset(rest: &str, sign: char) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    let digits = rest.strip_prefix(sign)?;
    if digits.is_empty() || digits.len() > 2 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The request's signal, else the image's, else SIGTERM; an image's that is no signal is ignored with a warning.
pub(crate) fn resolve(requested: i32, image: &str, warnings: &mut Vec<Warning>) -> StopSignal {
    if let Some(signal) = StopSignal::from_cri(requested) {
        return signal;
    }
    if image.is_empty() {
        return TERM;
    }
    StopSignal::parse(image).unwrap_or_else(|| {
        Warning::add_image(warnings, || {
            format!("the image's stop signal {image:?} is no signal: SIGTERM is used")
        });
        TERM
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("SIGPOLL", 29),
            ("64", 64),
        ] {
            assert_eq!(StopSignal::parse(text).map(StopSignal::number), Some(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_none() {
        for text in
            ["", "SIGFOO", "99", "-1", "0", "RTMIN+31", "RTMIN+", "RTMIN-1", "SIG", "RTMAX+1", "RTMIN++1"]
        {
            assert_eq!(StopSignal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_signal_of_cri_survives_both_ways() {
        for value in 1..=65 {
            let signal = StopSignal::from_cri(value).unwrap_or_else(|| panic!("{value} has no signal"));
            assert_eq!(StopSignal::from_cri(signal.to_cri() as i32), Some(signal), "{value}");
        }
        assert_eq!(StopSignal::from_cri(0), None);
        assert_eq!(StopSignal::from_cri(66), None);
        assert_eq!((StopSignal::from_number(9).number(), StopSignal::from_number(99).number()), (9, 15));
    }

    #[test]
    fn the_request_wins_over_the_image_and_nonsense_is_sigterm() {
        let mut warnings = Vec::new();
        assert_eq!(resolve(10, "SIGQUIT", &mut warnings).number(), 2);
        assert_eq!(resolve(0, "SIGQUIT", &mut warnings).number(), 3);
        assert_eq!(resolve(0, "", &mut warnings).number(), 15);
        assert!(warnings.is_empty());
        assert_eq!(resolve(0, "SIGFOO", &mut warnings).number(), 15);
        assert_eq!(warnings.len(), 1);
    }
}
