//! The issuer's files, what it signs and what it refuses.

use std::{fs, os::unix::fs::PermissionsExt as _};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType};

use super::*;

const IDENTITY: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

fn open(folder: &Path) -> Result<Ca, CaError> {
    Ca::with_state(folder, "cluster.local", Validity::default())
}

fn csr(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    signed_csr(edit, &key)
}

fn signed_csr(edit: impl FnOnce(&mut CertificateParams), key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new([IDENTITY.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    edit(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn issue(ca: &Ca) -> Issued {
    let csr = Csr::parse(&csr(|_| {})).unwrap();
    ca.issue(&IDENTITY.parse().unwrap(), &csr).unwrap()
}

#[test]
fn requests_for_anything_but_the_identity_are_refused() {
    let identity = IDENTITY.parse().unwrap();
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    type Edit = Box<dyn FnOnce(&mut CertificateParams)>;
    let cases: Vec<(Edit, Result<(), CsrError>)> = vec![
        (Box::new(|_| {}), Ok(())),
        (
            Box::new(|params| params.distinguished_name.push(DnType::CommonName, IDENTITY)),
            Ok(()),
        ),
        (
            Box::new(|params| params.distinguished_name.push(DnType::CommonName, "other")),
            Err(CsrError::CommonName {
                found: "other".into(),
                expected: IDENTITY.into(),
            }),
        ),
        (
            Box::new(|params| params.subject_alt_names.clear()),
            Err(CsrError::NameCount(0)),
        ),
        (
            Box::new(move |params| params.subject_alt_names.push(dns("b.example"))),
            Err(CsrError::NameCount(2)),
        ),
        (
            Box::new(move |params| params.subject_alt_names = vec![dns("b.example")]),
            Err(CsrError::OtherName {
                found: "b.example".into(),
                expected: IDENTITY.into(),
            }),
        ),
        (
            Box::new(|params| {
                let ip = SanType::IpAddress([10, 0, 0, 1].into());
                params.subject_alt_names.push(ip);
            }),
            Err(CsrError::OtherKinds),
        ),
        (
            Box::new(|params| {
                let uri = SanType::URI("spiffe://td/x".try_into().unwrap());
                params.subject_alt_names.push(uri);
            }),
            Err(CsrError::OtherKinds),
        ),
        (
            Box::new(|params| {
                let mail = SanType::Rfc822Name("a@b.example".try_into().unwrap());
                params.subject_alt_names.push(mail);
            }),
            Err(CsrError::OtherKinds),
        ),
    ];
    for (number, (edit, expected)) in cases.into_iter().enumerate() {
        let found = Csr::parse(&csr(edit)).and_then(|csr| csr.check(&identity));
        assert_eq!(found, expected, "case {number}");
    }
}

#[test]
fn garbage_foreign_keys_and_broken_signatures_are_no_requests() {
    let parse = |bytes: &[u8]| Csr::parse(bytes).map(|_csr| ());
    assert_eq!(parse(b""), Err(CsrError::Malformed));
    assert_eq!(parse(b"garbage"), Err(CsrError::Malformed));
    assert_eq!(parse(b"-----BEGIN nothing"), Err(CsrError::Malformed));
    assert_eq!(parse(&[0x30; 100_000]), Err(CsrError::Malformed));
    let good = csr(|_| {});
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(parse(&longer), Err(CsrError::Malformed));
    let mut forged = good;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(parse(&forged), Err(CsrError::Signature));
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    assert_eq!(parse(&signed_csr(|_| {}, &ed25519)), Err(CsrError::Key));
    let pem = CertificateParams::new([IDENTITY.to_owned()]).unwrap();
    let pem = pem
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap();
    assert_eq!(parse(pem.pem().unwrap().as_bytes()), Ok(()));
}

#[test]
fn a_leaf_says_the_identity_and_nothing_else() {
    let state = tempfile::tempdir().unwrap();
    let ca = open(state.path()).unwrap();
    let before = SystemTime::now();
    let issued = issue(&ca);
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
    assert_eq!(leaf.subject().to_string(), format!("CN={IDENTITY}"));
    assert!(!leaf.is_ca());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let (start, end) = files::lifetime(&leaf);
    let day = Duration::from_secs(24 * 60 * 60);
    let slack = Duration::from_secs(5);
    assert!(start <= before - Duration::from_secs(19), "backdated");
    assert!(end >= before + day - slack && end <= SystemTime::now() + day);
    assert_ne!(issue(&ca).serial, issued.serial);
    assert_eq!(issued.chain.len(), 1, "the issuer, not the anchor");
}

#[test]
fn a_restart_keeps_the_anchor_and_modes_are_safe() {
    let parent = tempfile::tempdir().unwrap();
    let state = parent.path().join("state");
    drop(open(&state).unwrap());
    let anchors = fs::read(state.join("trust-anchors.pem")).unwrap();
    for (name, mode) in [
        ("trust-anchors.pem", 0o644),
        ("issuer.pem", 0o644),
        ("issuer-key.pem", 0o600),
        ("anchor-key.pem", 0o600),
        ("", 0o700),
    ] {
        let metadata = fs::metadata(state.join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
    drop(open(&state).unwrap());
    assert_eq!(fs::read(state.join("trust-anchors.pem")).unwrap(), anchors);
}

#[test]
fn a_first_start_that_was_killed_anywhere_is_completed() {
    // The files in the order in which they are made; a kill leaves the first few of them.
    let order = [
        "anchor-key.pem",
        "trust-anchors.pem",
        "issuer-key.pem",
        "issuer.pem",
    ];
    for made in 0..=order.len() {
        let whole = tempfile::tempdir().unwrap();
        let ca = open(whole.path()).unwrap();
        let state = tempfile::tempdir().unwrap();
        for name in &order[..made] {
            fs::copy(whole.path().join(name), state.path().join(name)).unwrap();
        }
        fs::write(state.path().join(".tmp-left"), "half a fi").unwrap();
        let again = open(state.path()).unwrap();
        issue(&again);
        if made >= 2 {
            assert_eq!(*again.watch_bundle().borrow(), *ca.watch_bundle().borrow());
        }
        assert!(!state.path().join(".tmp-left").exists());
    }
}

#[test]
fn wrong_files_are_named_with_a_remedy() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage, &str); 6] = [
        (
            "trust-anchors.pem",
            |file| fs::write(file, "x").unwrap(),
            "trust-anchors.pem: holds no PEM certificate",
        ),
        (
            "issuer-key.pem",
            |file| fs::write(file, "x").unwrap(),
            "issuer-key.pem: holds no PEM private key",
        ),
        (
            "issuer-key.pem",
            |file| {
                let key = KeyPair::generate().unwrap();
                fs::write(file, key.serialize_pem()).unwrap();
            },
            "issuer-key.pem is not that of the certificate in",
        ),
        (
            "issuer.pem",
            |file| {
                let leaf = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
                fs::write(file, leaf.cert.pem()).unwrap();
            },
            "is not that of a certificate authority",
        ),
        (
            "trust-anchors.pem",
            |file| {
                let other = tempfile::tempdir().unwrap();
                drop(open(other.path()).unwrap());
                fs::copy(other.path().join("trust-anchors.pem"), file).unwrap();
            },
            "is not vouched for by any trust anchor in",
        ),
        (
            "trust-anchors.pem",
            |file| {
                fs::remove_file(file).unwrap();
                fs::remove_file(file.with_file_name("anchor-key.pem")).unwrap();
            },
            "trust-anchors.pem is missing: restore it from a copy",
        ),
    ];
    for (name, damage, expected) in damage {
        let state = tempfile::tempdir().unwrap();
        drop(open(state.path()).unwrap());
        damage(&state.path().join(name));
        let error = match open(state.path()) {
            Ok(_) => panic!("{expected}: accepted"),
            Err(error) => report(&error).to_string(),
        };
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn an_expired_issuer_is_refused_and_one_of_our_own_is_renewed() {
    let state = tempfile::tempdir().unwrap();
    let ca = open(state.path()).unwrap();
    let year = Duration::from_secs(366 * 24 * 60 * 60);
    let later = SystemTime::now() + year;
    let error = ca.files.load(later).unwrap_err().to_string();
    assert!(error.contains("issuer.pem"), "{error}");
    assert!(error.contains("expired at"), "{error}");
    assert!(error.contains("replace it"), "{error}");
    let early = ca
        .files
        .load(SystemTime::now() - year)
        .unwrap_err()
        .to_string();
    assert!(early.contains("is not valid before"), "{early}");
    let authority = ca.authority.load();
    assert!(authority.check(later).is_err(), "a loaded one ends, too");
    state::renew_issuer(&ca.files, later).unwrap();
    let renewed = ca.files.load(later).unwrap();
    assert_eq!(renewed.bundle(), authority.bundle());
}

#[test]
fn leaves_do_not_outlive_the_chain() {
    let state = tempfile::tempdir().unwrap();
    let validity = Validity {
        lifetime: Duration::from_secs(20 * 366 * 24 * 60 * 60),
        ..Validity::default()
    };
    let ca = Ca::with_state(state.path(), "cluster.local", validity).unwrap();
    assert_eq!(issue(&ca).not_after, ca.expires());
}

#[test]
fn replaced_files_are_used_and_wrong_ones_are_not() {
    let state = tempfile::tempdir().unwrap();
    let ca = open(state.path()).unwrap();
    let bundle = ca.watch_bundle();
    let first = bundle.borrow().clone();
    let anchors = state.path().join("trust-anchors.pem");
    fs::write(&anchors, "nonsense").unwrap();
    assert!(ca.refresh().is_err());
    assert!(!bundle.has_changed().unwrap());
    issue(&ca);
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()).unwrap());
    let second = fs::read_to_string(other.path().join("trust-anchors.pem")).unwrap();
    fs::write(&anchors, format!("{first}{second}")).unwrap();
    ca.refresh().unwrap();
    assert_eq!(**bundle.borrow(), format!("{first}{second}"));
    for name in ["issuer.pem", "issuer-key.pem"] {
        fs::copy(other.path().join(name), state.path().join(name)).unwrap();
    }
    ca.refresh().unwrap();
    let issued = issue(&ca);
    let (_, issuer) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let pem = fs::read(other.path().join("issuer.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    assert_eq!(
        issuer.tbs_certificate.raw_serial(),
        pem.parse_x509().unwrap().raw_serial()
    );
}
