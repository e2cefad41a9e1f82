"""BEANS's twelve sets: where their lists lie, at what rate and length they are read, what their classes are.

Facts from github.com/earthspecies/beans (MIT): datasets.yml, beans/datasets.py and scripts/. Clips are cut from their
start; recordings are scored by windows.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Beans:
    """One of BEANS's sets, or what is known of an own task. Lists lie below data/ with the split's name for {}."""
    group: str | None = None
    lists: str = ""
    sample_rate: int | None = None  # Hz
    seconds: float | None = None  # of a clip, or of a window
    hop: float | None = None  # seconds between windows
    labels: str = ""  # separated by semicolons; "": those of the lists
    unknown: str | None = None  # the label that others are counted as; None: an error
    recording: str = ""  # a pattern whose group 1 says which files were one recording (or speaker); "": each its own


_MINUTE = r"([^/]+)\.\d{3}\.wav$"  # recordings are cut into minutes NAME.000.wav, NAME.001.wav, …
_WATKINS = (
    "Clymene_Dolphin;Bottlenose_Dolphin;Spinner_Dolphin;Beluga,_White_Whale;Bearded_Seal;Minke_Whale;Humpback_Whale;"
    "Southern_Right_Whale;White-sided_Dolphin;Narwhal;White-beaked_Dolphin;Northern_Right_Whale;Frasers_Dolphin;"
    "Grampus,_Rissos_Dolphin;Harp_Seal;Atlantic_Spotted_Dolphin;Fin,_Finback_Whale;Ross_Seal;Rough-Toothed_Dolphin;"
    "Killer_Whale;Pantropical_Spotted_Dolphin;Short-Finned_Pacific_Pilot_Whale;Bowhead_Whale;False_Killer_Whale;"
    "Melon_Headed_Whale;Long-Finned_Pilot_Whale;Striped_Dolphin;Leopard_Seal;Walrus;Sperm_Whale;Common_Dolphin")
_CBI = ";".join((  # eBird codes
    "aldfly ameavo amebit amecro amegfi amekes amepip amered amerob amewig amewoo amtspa annhum astfly baisan "
    "baleag balori banswa barswa bawwar belkin1 belspa2 bewwre bkbcuc bkbmag1 bkbwar bkcchi bkchum bkhgro bkpwar "
    "bktspa blkpho blugrb1 blujay bnhcow boboli bongul brdowl brebla brespa brncre brnthr brthum brwhaw btbwar "
    "btnwar btywar buffle buggna buhvir bulori bushti buwtea buwwar cacwre calgul calqua camwar cangoo canwar "
    "canwre carwre casfin caster1 casvir cedwax chispa chiswi chswar chukar clanut cliswa comgol comgra comloo "
    "commer comnig comrav comred comter comyel coohaw coshum cowscj1 daejun doccor dowwoo dusfly eargre easblu "
    "easkin easmea easpho eastow eawpew eucdov eursta evegro fiespa fiscro foxspa gadwal gcrfin gnttow gnwtea "
    "gockin gocspa goleag grbher3 grcfly greegr greroa greyel grhowl grnher grtgra grycat gryfly haiwoo hamfly "
    "hergul herthr hoomer hoowar horgre horlar houfin houspa houwre indbun juntit1 killde labwoo larspa lazbun "
    "leabit leafly leasan lecthr lesgol lesnig lesyel lewwoo linspa lobcur lobdow logshr lotduc louwat macwar "
    "magwar mallar3 marwre merlin moublu mouchi moudov norcar norfli norhar2 normoc norpar norpin norsho norwat "
    "nrwswa nutwoo olsfly orcwar osprey ovenbi1 palwar pasfly pecsan perfal phaino pibgre pilwoo pingro pinjay "
    "pinsis pinwar plsvir prawar purfin pygnut rebmer rebnut rebsap rebwoo redcro redhea reevir1 renpha reshaw "
    "rethaw rewbla ribgul rinduc robgro rocpig rocwre rthhum ruckin rudduc rufgro rufhum rusbla sagspa1 sagthr "
    "savspa saypho scatan scoori semplo semsan sheowl shshaw snobun snogoo solsan sonspa sora sposan spotow stejay "
    "swahaw swaspa swathr treswa truswa tuftit tunswa veery vesspa vigswa warvir wesblu wesgre weskin wesmea wessan "
    "westan wewpew whbnut whcspa whfibi whtspa whtswi wilfly wilsni1 wiltur winwre3 wlswar wooduc wooscj2 woothr "
    "y00475 yebfly yebsap yehbla yelwar yerwar yetvir").split())
_HUMBUGDB = (
    "non-mosquito;an arabiensis;others;an gambiae ss;culex quinquefasciatus;culex pipiens complex;an funestus ss;"
    "an squamosus;ma uniformis;an dirus;ae aegypti;an harrisoni;an maculatus;an funestus sl")
_DCASE = "AMRE;BBWA;BTBW;CALL;CCMK;CHSP;COYE;GCTH;GIG;GRN;OVEN;Q;RBGR;SAVS;SNMK;SQT;SWTH;WTSP"
_ENABIRDS = (
    "AMCR;AMGO;AMRE;AMRO;BAWW;BCCH;BGGN;BHCO;BHVI;BLJA;BTNW;BWWA;CARW;COYE;EATO;HETH;HOWA;KEWA;LOWA;NOCA;NOFL;OVEN;"
    "RBGR;RBWO;RCKI;REVI;SCTA;SWTH;TUTI;WBNU;WITU;WOTH;YBCU;OTHR")
_COMMANDS = (
    "backward;bed;bird;cat;dog;down;eight;five;follow;forward;four;go;happy;house;learn;left;marvin;nine;no;off;on;"
    "one;right;seven;sheila;six;stop;three;tree;two;up;visual;wow;yes;zero")

BEANS = {
    "watkins": Beans("classification", "watkins/annotations.{}.csv", 44100, 3, None, _WATKINS),
    "bats": Beans("classification", "egyptian_fruit_bats/annotations.{}.csv", 250000, 5, None,
                  "111;210;211;215;216;220;226;228;230;231"),
    "cbi": Beans("classification", "cbi/annotations.{}.csv", 44100, 10, None, _CBI),
    "dogs": Beans("classification", "dogs/annotations.{}.csv", 44100, 10, None,
                  "Farley;Freid;Keri;Louie;Luke;Mac;Roodie;Rudy;Siggy;Zoe"),
    "humbugdb": Beans("classification", "HumBugDB/data/metadata/{}.csv", 44100, 3, None, _HUMBUGDB),
    "dcase": Beans("detection", "dcase/{}.jsonl", 16000, 2, 1, _DCASE, recording=_MINUTE),
    "enabirds": Beans("detection", "enabirds/{}.jsonl", 32000, 2, 1, _ENABIRDS, "OTHR", _MINUTE),
    "hiceas": Beans("detection", "hiceas/{}.jsonl", 22050, 10, 5, "1"),
    "rfcx": Beans("detection", "rfcx/{}.jsonl", 48000, 10, 5, ";".join(map(str, range(24)))),
    "hainan-gibbons": Beans("detection", "hainan_gibbons/{}.jsonl", 9600, 4, 2, "1;2;3", "1", _MINUTE),
    "esc50": Beans("auxiliary", "esc50/meta/esc50.{}.csv", 44100, 5, None, ";".join(map(str, range(50))),
                   recording=r"(\d+-\d+)-[^/]+$"),  # fold-recording-take-class.wav
    "speech-commands": Beans("auxiliary", "speech_commands/{}.csv", 16000, 1, None, _COMMANDS,
                             recording=r"([^/]+)_nohash_"),  # the speaker
}
