"""The kinds of files that may be read: FFmpeg's demuxers that read the file itself and open no others.

A playlist, a session description or a script (m3u8, ffconcat, sdp, avs) leads FFmpeg to further files and addresses,
and text is a video to it, too. Such inputs are refused before anything that they name is opened.
"""

import re
import shlex
from pathlib import Path

from vdeblur.errors import InputError

VIDEO = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,kux,mpeg,mpegts,mpegvideo,mxf,mxg,nut,ogg,asf,asf_o,dv,gif,"
    "apng,jpegxl_anim,webp_anim,avs,avs2,avs3,h261,h263,h264,hevc,evc,vvc,obu,av1,ivf,iamf,m4v,mjpeg,mjpeg_2000,apv,vc1,"
    "vc1test,cavsvideo,dirac,dnxhd,ingenient,yuv4mpegpipe,rm,ivr,wtv,nsv,nuv,gxf,lxf,lvf,r3d,swf,ty,vivo,pva,pmp,dhav,"
    "usm,xmv,cine,ser,iv8,ifv,fits,ipu,moflex,mods,dxa,flic,smk,bink,smush,film_cpk,filmstrip,roq,4xm,ea,idcin,ipmovie,"
    "mm,mvi,mtv,mv,psxstr,rl2,rpl,sga,siff,thp,tmv,txd,vividas,vmd,wc3movie,wsvqa,yop,cdxl,c93,bethsoftvid,bfi,dsicin,"
    "anm,frm,gdv,hnm,jv,lmlm4,paf,argo_brp,bmv,iss,cdg,iff,ico,derf"
)
PICTURES = (
    "png_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,jpegxs_pipe,tiff_pipe,webp_pipe,bmp_pipe,exr_pipe,dpx_pipe,gif_pipe,"
    "hdr_pipe,j2k_pipe,pam_pipe,pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,phm_pipe,ppm_pipe,psd_pipe,qoi_pipe,"
    "image2,sgi_pipe,sunrast_pipe,xbm_pipe,xpm_pipe,xwd_pipe,cri_pipe,dds_pipe,pictor_pipe,photocd_pipe,pgx_pipe,qdraw_pipe"
)
# Without video, but a file that somebody may name by mistake: the answer is that it holds no video.
SOUND = "aac,ac3,eac3,aiff,amr,ape,au,caf,dts,flac,mp3,mlp,truehd,tta,w64,wav,wv,ass,srt,webvtt"
# Options of av.open for every input that a user or a file names. image2 reads a picture whose name ends as one; without
# the last option it would take %03d or a star in the name for further files.
SAFE_INPUT = {
    "format_whitelist": f"{VIDEO},{PICTURES},{SOUND}",
    "protocol_whitelist": "file,pipe,fd",
    "pattern_type": "none",
}
HEAD_BYTES = 1024
# What leads to further files, by how such a file begins.
LEADING = {
    rb"#EXTM3U": "a playlist (m3u8)",
    rb"ffconcat version": "a list of files (ffconcat)",
    rb"v=0\r?\n": "a session description (sdp)",
    rb"# VobSub index": "an index of subtitles (vobsub)",
    rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<MPD": "a playlist (dash)",
    rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(AssetMap|CompositionPlaylist)": "a composition of other files (imf)",
    rb"\[(playlist|Reference)\]": "a playlist",
    rb"(rtsp|rtmp|https?|ftp)://": "an address",
}


def check_leads_nowhere(path: Path) -> None:
    """Refuse a file that begins like a playlist, or like another kind that leads to further files.

    Raises: InputError; OSError if it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, kind in LEADING.items():
        if re.match(beginning, head, re.IGNORECASE | re.DOTALL):
            hint = f"if you trust it, save what it leads to: ffmpeg -i {shlex.quote(path.name)} -c copy video.mkv"
            raise InputError(f"{path} is {kind}, which leads to further files, so vdeblur does not open it", hint)
